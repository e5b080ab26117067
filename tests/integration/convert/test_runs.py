"""Convert runs as pods do them: from store to store, published once, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api import layout as keys
from kubebooth_store import fetch, read_manifest, read_pointer
from kubebooth_trainer.convert.formats.opening import open_local
from safetensors.torch import load_file, save_file

from tests.integration.convert.conftest import Booth, command, environment
from tests.integration.store.liar import Liar

HOME = "conversions/default/demo"


def pointer_of(booth: Booth, name: str = "demo") -> dict[str, Any] | None:
    found = read_pointer(booth.store, keys.current(HOME, name))
    return found[0] if found else None


@pytest.mark.parametrize("form", ["Safetensors", "Ckpt", "Diffusers"])
def test_a_model_is_converted_and_published_with_its_proof(
    booth: Booth, tmp_path: Path, form: str
) -> None:
    report = booth.run(target={"format": form})
    assert (report.kind, report.outcome, report.exit_code) == ("Convert", "Succeeded", 0)
    (artifact,) = report.artifacts
    assert (artifact.name, artifact.format) == ("demo", form)
    assert report.detected is not None
    assert (report.detected.family, report.detected.variant) == ("sd", "sd15")
    assert report.counts is not None
    assert report.counts.mismatched == 0
    source = read_manifest(booth.store, "models/tiny")
    assert source is not None
    assert report.source_digest == source.digest
    prefix = booth.store.key_of(artifact.uri)
    manifest = fetch(booth.store, prefix, tmp_path / "out", expect_digest=artifact.digest)
    assert manifest.size_bytes == artifact.size
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert (proof["readBack"], proof["finite"], proof["family"]) == (True, True, "sd")
    rows = [row for file in proof["tensors"].values() for row in file.values()]
    assert len(rows) == report.counts.tensors
    assert all(len(row["sha256"]) == 64 for row in rows)
    assert len(open_local(tmp_path / "out").tensors) == len(rows)
    pointer = pointer_of(booth)
    assert pointer is not None
    assert (pointer["digest"], pointer["key"]) == (artifact.digest, prefix)


def test_the_same_bytes_come_out_in_a_store_and_on_disk(
    booth: Booth, layout: Path, tmp_path: Path
) -> None:
    for form, suffix in (("Safetensors", "safetensors"), ("Ckpt", "ckpt")):
        report = booth.run(target={"format": form, "name": "same"}, overwrite=True)
        prefix = booth.store.key_of(report.artifacts[0].uri)
        target = tmp_path / f"same.{suffix}"
        assert command("convert", layout, target, "--to", suffix).returncode == 0
        data = booth.store.read(f"{prefix}/same.{suffix}", max_bytes=1 << 24)
        assert data == target.read_bytes()


def test_what_is_published_already_is_no_work(s3_booth: Booth, liar: Liar) -> None:
    first = s3_booth.run()
    again = s3_booth.through(liar.url).run()
    assert again.artifacts == first.artifacts
    assert (again.detected, again.counts) == (first.detected, first.counts)
    assert "already published" in again.message
    assert [liar.count(method=method) for method in ("PUT", "POST")] == [0, 0]


def test_other_options_make_another_artifact_only_where_moving_the_name_is_allowed(
    booth: Booth,
) -> None:
    first = booth.run()
    half = {"format": "Safetensors", "precision": "Fp16"}
    refused = booth.run(target=half)
    assert (refused.exit_code, refused.reason) == (64, "TargetExists")
    assert pointer_of(booth)["digest"] == first.artifacts[0].digest  # type: ignore[index]
    moved = booth.run(target=half, overwrite=True)
    assert moved.artifacts[0].size < first.artifacts[0].size
    assert pointer_of(booth)["digest"] == moved.artifacts[0].digest  # type: ignore[index]
    old = read_manifest(booth.store, booth.store.key_of(first.artifacts[0].uri))
    assert old is not None
    beside = booth.run(target={**half, "name": "half"})
    assert beside.exit_code == 0


def test_a_dry_run_reports_and_writes_nothing(booth: Booth) -> None:
    report = booth.run(dryRun=True)
    assert report.exit_code == 0
    assert report.artifacts == ()
    assert report.counts is not None
    assert report.counts.tensors > 100
    assert booth.keys_below("conversions") == []


def damage(booth: Booth, key: str) -> None:
    """Flip a bit of a stored file behind the manifest's back."""
    data = bytearray(booth.store.read(key, max_bytes=1 << 24))
    data[-5] ^= 16
    booth.store.write(key, bytes(data))


def spoil(booth: Booth, tmp_path: Path, change: str) -> dict[str, Any]:
    """A Run whose source is bad in one way."""
    unet = "models/tiny/unet/diffusion_pytorch_model.safetensors"
    if change == "a flipped bit":
        damage(booth, unet)
    elif change == "a damaged config":
        damage(booth, "models/tiny/model_index.json")
    elif change == "a missing file":
        booth.store.delete(unet)
    elif change == "a shorter file":
        booth.store.write(unet, booth.store.read(unet, max_bytes=1 << 24)[:-100])
    elif change == "another digest":
        source = {**booth.asked()["source"], "digest": f"sha256:{'1' * 64}"}
        return booth.asked(source=source)
    elif change == "no such model":
        uri = booth.store.uri_of("models/none")
        return booth.asked(source={**booth.asked()["source"], "uri": uri})
    elif change == "another family":
        return booth.asked(variant="sdxl")
    elif change == "a picture":
        booth.store.write("uploads/cat.png", b"\x89PNG" + bytes(100))
        uri = booth.store.uri_of("uploads/cat.png")
        return booth.asked(source={**booth.asked()["source"], "uri": uri})
    elif change == "not finite":
        rows = load_file(stored(booth, unet, tmp_path))
        rows["conv_in.bias"] = torch.full_like(rows["conv_in.bias"], float("nan"))
        save_file(rows, tmp_path / "nan.safetensors")
        booth.store.delete("models/tiny/manifest.json")
        booth.store.write(unet, (tmp_path / "nan.safetensors").read_bytes())
    return booth.asked()


def stored(booth: Booth, key: str, folder: Path) -> Path:
    path = folder / "stored.safetensors"
    booth.store.download(key, path)
    return path


BAD = {
    "a flipped bit": (65, "DamagedSource"),
    "a damaged config": (65, "DamagedSource"),
    "a missing file": (65, "DamagedSource"),
    "a shorter file": (65, "DamagedSource"),
    "another digest": (65, "SourceChanged"),
    "no such model": (64, "SourceNotFound"),
    "another family": (64, "VariantMismatch"),
    "a picture": (65, "MalformedHeader"),
    "not finite": (65, "NotFinite"),
}


@pytest.mark.parametrize("change", BAD)
def test_bad_input_ends_with_its_reason_and_leaves_the_artifact_before(
    booth: Booth, tmp_path: Path, change: str
) -> None:
    first = booth.run(target={"format": "Ckpt"})
    before = booth.keys_below("conversions")
    report = booth.run(**{**spoil(booth, tmp_path, change), "overwrite": True})
    assert (report.exit_code, report.reason) == BAD[change], report.message
    assert report.outcome == "Failed"
    assert booth.keys_below("conversions") == before
    assert pointer_of(booth)["digest"] == first.artifacts[0].digest  # type: ignore[index]
    prefix = booth.store.key_of(first.artifacts[0].uri)
    fetch(booth.store, prefix, tmp_path / "old", expect_digest=first.artifacts[0].digest)


@pytest.mark.parametrize("part", [".safetensors", "proof.json", "manifest.json", "current.json"])
def test_a_store_that_fails_half_way_leaves_the_artifact_before_and_the_next_try_succeeds(
    s3_booth: Booth, liar: Liar, part: str
) -> None:
    first = s3_booth.run(target={"format": "Ckpt"})
    liar.lie("503", method="PUT", part=part, times=10_000)
    far = s3_booth.through(liar.url)
    report = far.run(overwrite=True, timeout="1")
    assert (report.exit_code, report.reason) == (67, "StorageUnavailable")
    assert pointer_of(s3_booth)["digest"] == first.artifacts[0].digest  # type: ignore[index]
    if part not in {"current.json"}:
        ours = [key for key in s3_booth.keys_below(HOME) if "demo.safetensors" in key]
        assert ours == []
    liar.lies.clear()
    assert far.run(overwrite=True).exit_code == 0


def test_a_network_that_breaks_off_now_and_then_is_not_noticed(
    s3_booth: Booth, liar: Liar, tmp_path: Path
) -> None:
    for fault in ("reset", "503", "truncate"):
        liar.lie(fault, method="GET", part=".safetensors", times=1)
    liar.lie("lose the answer", method="PUT", part=".safetensors")
    report = s3_booth.through(liar.url).run()
    assert report.exit_code == 0, report.message
    plain = s3_booth.run(target={"format": "Safetensors", "name": "plain"})
    assert report.counts == plain.counts


@pytest.mark.parametrize("booth", ["folder"], indirect=True)
def test_a_disk_that_fills_up_is_told_as_such(booth: Booth) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    report = booth.run_apart(small)
    assert report.exit_code == 67, report.message
    assert booth.keys_below("conversions") == []


def start(booth: Booth, folder: Path, run: dict[str, Any], **more: str) -> subprocess.Popen[bytes]:
    (folder / "run.json").write_text(json.dumps(run))
    return subprocess.Popen(
        [
            sys.executable, "-m", "kubebooth_trainer", "run", str(folder / "run.json"),
            "--report", str(folder / "report.json"),
        ],
        env={**environment(), **booth.keys, **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_ended_half_way_shows_nothing_and_the_next_one_all(
    s3_booth: Booth, liar: Liar, tmp_path: Path, how: signal.Signals
) -> None:
    first = s3_booth.run(target={"format": "Ckpt"})
    liar.lie("stall", method="PUT", part="demo.safetensors", times=10_000)
    run = s3_booth.through(liar.url).asked(overwrite=True)
    with start(s3_booth, tmp_path, run) as worker:
        while not liar.count(method="PUT", part="demo.safetensors"):
            assert worker.poll() is None
            time.sleep(0.02)
        worker.send_signal(how)
        if how == signal.SIGTERM:
            liar.lies.clear()
        liar.closing.set()  # the stalled answer comes to its end
        code = worker.wait(timeout=60)
    liar.lies.clear()
    if how == signal.SIGTERM:
        assert code in {0, 68}
        if code == 0:
            return
    assert pointer_of(s3_booth)["digest"] == first.artifacts[0].digest  # type: ignore[index]
    manifests = [key for key in s3_booth.keys_below(HOME) if key.endswith("manifest.json")]
    assert len(manifests) == 1
    assert s3_booth.run(overwrite=True).exit_code == 0


def test_purging_a_conversion_leaves_its_source(booth: Booth) -> None:
    booth.run()
    asked = {name: booth.asked()[name] for name in ("session", "store")}
    file, told = booth.folder / "purge.json", booth.folder / "purged.json"
    file.write_text(json.dumps({"kind": "Purge", "owner": "Conversion", **asked}))
    done = command("run", file, "--report", told, more=booth.keys)
    assert done.returncode == 0, done.stdout
    assert booth.keys_below("conversions") == []
    assert read_manifest(booth.store, "models/tiny") is not None


def test_a_single_object_without_a_manifest_is_a_source(
    booth: Booth, layout: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    assert command("convert", layout, path, "--to", "ckpt").returncode == 0
    booth.store.upload(path, "files/one.ckpt")
    source = {**booth.asked()["source"], "uri": booth.store.uri_of("files/one.ckpt")}
    report = booth.run(source=source)
    assert report.exit_code == 0, report.message
    assert report.source_digest is not None


def test_a_converted_artifact_is_a_source_again(booth: Booth) -> None:
    first = booth.run(target={"format": "Ckpt"})
    source = first.artifacts[0].model_dump(mode="json", by_alias=True)
    report = booth.run(source=source, target={"format": "Safetensors", "name": "b"})
    assert report.exit_code == 0, report.message
    assert report.counts == first.counts


BIG = """
import os, sys
from pathlib import Path
from kubebooth_store import open_store_from_env
from kubebooth_trainer.convert.stored.sources import open_stored
from kubebooth_trainer.convert.stored.targets import publish_plan
from kubebooth_trainer.convert.writing.targets import Wish
from tests.unit.convert.plans import identity
import kubebooth_trainer.worker
store = open_store_from_env(sys.argv[1], sys.argv[2])
source = open_stored(store, "big.safetensors").opened
plan = identity(source, "big.ckpt", "Ckpt")
publish_plan(plan, store, "out", Wish(), checks=(), metadata={}, tell=lambda *_: None)
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]
print(int(peak) // 1024)
"""


def test_a_large_model_passes_through_a_pod_of_128_mib(s3_booth: Booth, tmp_path: Path) -> None:
    rows = {f"t{n}": torch.full((4_000_000 + n,), float(n)) for n in range(16)}
    save_file(rows, tmp_path / "big.safetensors")
    s3_booth.store.upload(tmp_path / "big.safetensors", "big.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", BIG, s3_booth.store.uri, s3_booth.location["endpoint"]],
        env={**os.environ, **environment(), **s3_booth.keys},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120
