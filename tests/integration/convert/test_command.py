"""`kubebooth-trainer convert` and `inspect` as people use them."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kubebooth_store import read_manifest
from kubebooth_trainer.__main__ import main
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.writing.targets import Wish, write_single
from safetensors.torch import load_file, save_file

from tests.integration.convert.conftest import Booth, command, environment
from tests.unit.convert.plans import identity


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_becomes_a_file_and_a_folder_again(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single, back = tmp_path / "m.safetensors", tmp_path / "back"
    assert main(["convert", str(layout), str(single), "--to", "safetensors"]) == 0
    assert "proven equal" in capsys.readouterr().out
    configs = ["--configs-from", str(layout)]
    assert main(["convert", str(single), str(back), "--to", "diffusers", *configs]) == 0
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        ours = load_file(back / f"{part}.safetensors")
        theirs = load_file(layout / f"{part}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_target_in_a_folder_takes_the_name_of_the_source(layout: Path, tmp_path: Path) -> None:
    assert main(["convert", str(layout), str(tmp_path), "--to", "ckpt"]) == 0
    assert names_in(tmp_path) == {"model.ckpt"}
    assert main(["convert", str(layout), str(tmp_path), "--to", "ckpt", "--name", "mine"]) == 0
    assert names_in(tmp_path) == {"model.ckpt", "mine.ckpt"}


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.safetensors"
    assert main(["convert", str(layout), str(target), "--to", "safetensors", "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["family"], plan["variant"], plan["predictionType"]) == ("sd", "sd15", "epsilon")
    (file,) = [file for file in plan["files"] if file["form"] == "Safetensors"]
    assert len(file["tensors"]) == plan["counts"]["tensors"]
    assert all(row["from"] for row in file["tensors"].values())
    assert names_in(tmp_path) == set()


def test_what_is_there_stays_unless_it_may_be_replaced(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.ckpt"
    target.write_bytes(b"old")
    words = ["convert", str(layout), str(target), "--to", "ckpt"]
    assert main(words) == 64
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert main([*words, "--overwrite"]) == 0
    assert target.read_bytes()[:2] == b"PK"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_a_precision_and_metadata_that_are_asked_for_are_written(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.safetensors"
    words = ["--precision", "fp16", "--vae-precision", "fp32", "--metadata", "title=My dog"]
    assert main(["convert", str(layout), str(target), "--to", "safetensors", *words]) == 0
    capsys.readouterr()
    assert main(["inspect", str(target), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["dtypes"]) == {"F16", "F32"}
    assert facts["metadata"]["modelspec.title"] == "My dog"
    assert (facts["family"], facts["variant"]) == ("sd", "sd15")


def test_the_proof_is_kept_where_it_is_asked_for(layout: Path, tmp_path: Path) -> None:
    target, proof = tmp_path / "m.ckpt", tmp_path / "proof.json"
    words = ["convert", str(layout), str(target), "--to", "ckpt", "--proof", str(proof)]
    assert main(words) == 0
    told = json.loads(proof.read_text())
    assert (told["readBack"], told["finite"]) == (True, True)
    assert set(told["tensors"]) == {"m.ckpt"}


class Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch canary",)


def test_inspect_tells_what_a_pickle_would_run_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"a": torch.ones(2)}
    torch.save({"state_dict": rows, "callbacks": Evil()}, "m.ckpt", pickle_module=pickle)
    assert main(["inspect", "m.ckpt"]) == 0
    said = capsys.readouterr().out
    assert "safety: unsafe to unpickle: it names posix.system" in said
    assert "callbacks: posix.system, not run" in said
    assert names_in(tmp_path) == {"m.ckpt"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere", "m.ckpt", "--to", "ckpt"], 64, "SourceNotFound: nowhere"),
        (["LAYOUT", "m.txt", "--to", "ckpt"], 64, "ends with .ckpt"),
        (["LAYOUT", "m.ckpt", "--to", "ckpt", "--metadata", "title"], 64, "NAME=VALUE"),
        (["LAYOUT", "m.ckpt", "--to", "ckpt", "--merge-lora", "LAYOUT=x"], 64, "number"),
        (["LAYOUT", "m.ckpt", "--to", "ckpt", "--variant", "sdxl"], 64, "VariantMismatch"),
        (["LAYOUT", "/dev/null/m.ckpt", "--to", "ckpt"], 64, "can be written"),
        (["cat.png", "m.ckpt", "--to", "ckpt"], 65, "cat.png"),
        (["unknown.safetensors", "m.ckpt", "--to", "ckpt"], 65, "no family"),
        (["s3://", "m.ckpt", "--to", "ckpt"], 64, "s3://"),
        (["s3://bucket", "m.ckpt", "--to", "ckpt"], 64, "below the bucket"),
    ],
)
def test_every_mistake_has_its_exit_code_and_says_the_cure(
    layout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cat.png").write_bytes(b"\x89PNG\r\n" + bytes(100))
    save_file({"a": torch.ones(2)}, "unknown.safetensors")
    before = names_in(tmp_path)
    replaced = [word.replace("LAYOUT", str(layout)) for word in words]
    assert main(["convert", *replaced]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert "Traceback" not in told.err
    assert names_in(tmp_path) == before


def test_a_disk_that_fills_up_leaves_what_was_there(layout: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    words = ["convert", layout, target, "--to", "safetensors", "--overwrite"]
    done = command(*words, before=small)
    assert done.returncode == 67
    assert "NoSpace" in done.stderr
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == {"m.safetensors"}


WRITER = """
import sys
from pathlib import Path
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.writing.targets import Wish, write_single
from tests.unit.convert.plans import identity
target, stage, at = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
opened = open_local(Path(sys.argv[1]))
plan = identity(opened, target.name, "Ckpt" if target.suffix == ".ckpt" else "Safetensors")
done = 0
def tell(what, count):
    global done
    done += count if what == stage else 0
    if done >= at:
        print("now", flush=True)
        sys.stdin.read()
write_single(plan, target, Wish(overwrite=True), checks=(), tell=tell)
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(("stage", "at"), [("Write", 1), ("Write", 400_000), ("Prove", 700_000)])
def test_a_conversion_killed_anywhere_leaves_what_was_there_and_the_next_one_cleans_up(
    tmp_path: Path, suffix: str, stage: str, at: int
) -> None:
    source, target = tmp_path / "s.safetensors", tmp_path / f"m{suffix}"
    save_file({f"t{n}": torch.full((50_000,), float(n)) for n in range(4)}, source)
    target.write_bytes(b"old")
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(source), str(target), stage, str(at)],
        cwd=root,
        env={**environment(), "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"now\n"
        writer.send_signal(signal.SIGKILL)
    assert target.read_bytes() == b"old"
    assert len(names_in(tmp_path)) == 3  # source, old target and a hidden part
    form = "Ckpt" if suffix == ".ckpt" else "Safetensors"
    plan = identity(open_local(source), target.name, form)
    write_single(plan, target, Wish(overwrite=True), checks=(), tell=lambda *_: None)
    assert names_in(tmp_path) == {"s.safetensors", target.name}
    assert len(open_local(target).tensors) == 4


def test_the_commands_start_light(layout: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from kubebooth_trainer.__main__ import main\n"
        f"code = main(['convert', {str(layout)!r}, {str(tmp_path / 'm.ckpt')!r}, '--to', 'ckpt'])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'minio', 'rich', 'PIL'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_sources_and_targets_may_stand_in_a_store(
    s3_booth: Booth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_booth.keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_booth.location["endpoint"])
    source, there = s3_booth.store.uri_of("models/tiny"), s3_booth.store.uri_of("made/one")
    assert main(["convert", source, there, "--to", "ckpt", "--name", "one"]) == 0
    manifest = read_manifest(s3_booth.store, "made/one")
    assert manifest is not None
    assert {row.path for row in manifest.files} >= {"one.ckpt", "proof.json"}
    assert main(["convert", source, there, "--to", "ckpt", "--name", "one"]) == 67
    assert read_manifest(s3_booth.store, "made/one") == manifest
    local = tmp_path / "one.safetensors"
    assert main(["convert", there, str(local), "--to", "safetensors"]) == 0
    direct = tmp_path / "two.safetensors"
    assert main(["convert", source, str(direct), "--to", "safetensors"]) == 0
    ours, theirs = load_file(local), load_file(direct)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_is_loaded_and_run_where_that_is_asked_for(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--to", "diffusers", "--load", "--allow-infinite"]
    assert main(["convert", str(layout), str(tmp_path / "good"), *words]) == 0
    broken = shutil.copytree(layout, tmp_path / "broken")
    unet = broken / "unet" / "diffusion_pytorch_model.safetensors"
    rows = load_file(unet)
    rows["conv_in.bias"] = torch.full_like(rows["conv_in.bias"], float("nan"))
    save_file(rows, unet)
    assert main(["convert", str(broken), str(tmp_path / "bad"), *words]) == 65
    assert "DoesNotLoad" in capsys.readouterr().err
