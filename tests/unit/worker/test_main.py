import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import RunReport
from kubebooth_store import Conflict, Corrupt, Denied, NotFound, Refused, StoreError, Unavailable
from kubebooth_store import Unsupported as Unknown
from kubebooth_trainer import logs
from kubebooth_trainer.__main__ import main
from kubebooth_trainer.worker import storage_fault

from tests.unit.worker.conftest import Booth


@pytest.fixture(autouse=True)
def _logging_is_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("POD_IP", "KUBEBOOTH_REPORT", "KUBEBOOTH_WORKDIR", "KUBEBOOTH_STORE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def run(booth: Booth, asked: Any, *options: str) -> tuple[int, RunReport]:
    file, report = booth.workdir / "run.json", booth.workdir / "report.json"
    file.write_text(asked if isinstance(asked, str) else json.dumps(asked))
    code = main(["run", str(file), "--report", str(report), *options])
    return code, RunReport.model_validate_json(report.read_bytes())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("", "run: Invalid JSON"),
        ("[" * 50_000, "run: Invalid JSON"),
        ("[]", "run"),
        ('{"kind": "Bake"}', "Bake"),
        ('{"kind": "Train"}', "run.digest: Field required"),
        ({"resolution": "big"}, "run.resolution: "),
        ({"resolutoin": 64}, "run.resolutoin: Extra inputs"),
        ({"session": {"namespace": "a/../b", "name": "x"}}, "run.session: "),
        ({"store": {"uri": "ftp://x"}}, "run.store: "),
        ({"store": {"uri": "s3://"}}, "run.store: "),
        ({"resolution": 65}, "resolution: 65"),
    ],
)
def test_a_wrong_run_is_refused_with_its_field(booth: Booth, asked: Any, words: str) -> None:
    code, report = run(booth, asked if isinstance(asked, str) else booth.asked(**asked))
    assert (code, report.exit_code, report.reason) == (64, 64, "ConfigurationError")
    assert words in report.message
    assert report.outcome == "Failed"


def test_the_report_of_a_wrong_run_answers_its_kind(booth: Booth) -> None:
    assert run(booth, '{"kind": "Purge"}')[1].kind == "Purge"
    assert run(booth, "{")[1].kind == "Prepare"


@pytest.mark.parametrize(
    "options",
    [
        ("--store-timeout", "0"),
        ("--store-timeout", "nan"),
        ("--store-timeout", "99999"),
        ("--workdir", "/proc/none"),
        ("--listen", "nowhere"),
    ],
)
def test_a_wrong_option_is_refused_by_name(booth: Booth, options: tuple[str, ...]) -> None:
    code, report = run(booth, booth.asked(), *options)
    assert code == 64
    assert any(word in report.message for word in (options[0], "time-out"))


def test_a_run_that_is_not_there_is_refused(booth: Booth, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert main(["run", str(tmp_path / "none.json"), "--report", str(report)]) == 64
    assert "none.json: No such file" in report.read_text()


def test_a_laptop_needs_no_report_file(booth: Booth, capsys: pytest.CaptureFixture[str]) -> None:
    booth.upload_pictures(2)
    file = booth.workdir / "run.json"
    file.write_text(json.dumps(booth.asked()))
    assert main(["run", str(file), "--log", "text"]) == 0
    assert "2 pictures ready, 0 with a caption" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_does_not_change_the_exit_code(booth: Booth) -> None:
    booth.upload_pictures(1)
    file = booth.workdir / "run.json"
    file.write_text(json.dumps(booth.asked()))
    assert main(["run", str(file), "--report", "/proc/none/report.json"]) == 0


def test_a_pod_serves_on_its_own_address(
    booth: Booth, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An address of no machine: the worker says so and goes on.
    monkeypatch.setenv("POD_IP", "192.0.2.1")
    booth.upload_pictures(1)
    assert run(booth, booth.asked())[0] == 0
    assert "192.0.2.1:8080" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "exit_code", "reason"),
    [
        (Unavailable("x"), 67, "StorageUnavailable"),
        (Denied("x"), 67, "StorageDenied"),
        (NotFound("x"), 67, "StorageNotFound"),
        (Corrupt("x"), 67, "StorageCorrupt"),
        (Conflict("x"), 67, "StorageConflict"),
        (Unknown("x"), 64, "StorageUnsupported"),
        (Refused("x"), 64, "ConfigurationError"),
    ],
)
def test_every_error_of_the_store_has_its_exit_code(
    error: StoreError, exit_code: int, reason: str
) -> None:
    fault = storage_fault(error)
    assert (fault.exit_code, fault.reason) == (exit_code, reason)
    assert fault.message.startswith("x")


def test_log_lines_are_one_json_object_each() -> None:
    record = logging.makeLogRecord(
        {"msg": "a %s", "args": ("b\nc",), "name": "n", "levelno": 20, "size": Path("x")}
    )
    line = logs.JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["msg"], told["logger"], told["size"]) == ("a b\nc", "n", "x")
    assert logs.PlainLines().format(record) == "a b\nc  size=x"
