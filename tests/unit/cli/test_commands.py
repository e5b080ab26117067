"""Wrong usage is told in words before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubebooth_cli.__main__ import run
from kubebooth_cli.errors import CliError, near
from kubebooth_cli.uploading import model_files


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["upload", "."], "--session NAME for pictures, or --model NAME"),
        (["upload", ".", "--session", "a", "--model", "b"], "say what the files are for"),
        (["upload", ".", "--session", "Not A Name"], "no name that Kubernetes takes"),
        (["upload", "a", "b", "--model", "m"], "--model takes one folder"),
        (["upload", "/nonexistent", "--session", "a"], "/nonexistent does not exist"),
        (["upload", ".", "--model", "../up"], "no name that Kubernetes takes"),
    ],
)
def test_a_wrong_upload_names_the_cure(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 1
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.startswith("error: ")


@pytest.mark.parametrize("words", [["nonsense"], ["watch"], ["status", "--nonsense"]])
def test_wrong_words_are_usage_errors(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert "Usage:" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["upload", "--help"], ["version"]])
def test_help_and_version_need_no_cluster(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) in {0, 2}
    assert "kubebooth" in capsys.readouterr().out.lower()


def test_every_command_takes_the_options_of_kubectl(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("upload", "status", "watch", "samples", "fetch", "logs", "retry", "suspend"):
        assert run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in ("--namespace", "--context", "--kubeconfig"):
            assert option in shown, command


def test_near_names_are_suggested() -> None:
    assert near("quikstart", ["quickstart", "other"]) == "did you mean quickstart?"
    assert near("zzz", ["quickstart"]) == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [("unet/model.bin", "could run code"), ("setup.py", "could run code"), ("unet/x.ckpt", "code")],
)
def test_a_model_with_code_in_it_is_refused(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CliError, match=told):
        model_files(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"model_index\.json"):
        model_files(tmp_path)
    with pytest.raises(CliError, match="no folder"):
        model_files(tmp_path / "none")
