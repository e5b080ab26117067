"""Samples, models and logs come to this machine, true to the byte."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from kubebooth_api.artifacts import Manifest
from kubebooth_store import publish_files

from tests.integration.cli.desk import Desk, plain, png


def _trained(desk: Desk, name: str = "dog") -> Manifest:
    """A session with samples and an artifact in the store."""
    run = f"sessions/{desk.namespace}/{name}/runs/0123456789ab"
    store = desk.store()
    samples = f"{run}/samples/Denoiser-00000600"
    publish_files(store, samples, {"before-after.png": png(7)}, kind="samples")
    files: dict[str, Path | bytes] = {
        "model_index.json": b"{}",
        "unet/w.safetensors": bytes(50_000),
    }
    prefix = f"{run}/artifacts/diffusers/abc"
    manifest = publish_files(store, prefix, files, kind="artifact")
    artifact = {
        "name": "diffusers",
        "uri": store.uri_of(prefix),
        "digest": manifest.digest,
        "size": manifest.size_bytes,
        "format": "Diffusers",
    }
    desk.create(name)
    desk.say(
        name,
        "Complete",
        phase="Complete",
        message="done",
        samples=store.uri_of(f"{samples}/before-after.png"),
        artifacts=[artifact],
    )
    return manifest


def test_the_newest_samples_are_saved_under_a_name_that_tells_the_step(
    desk: Desk, tmp_path: Path, monkeypatch: Any
) -> None:
    _trained(desk)
    monkeypatch.chdir(tmp_path)
    answer = desk.run("samples", "dog")
    assert answer.code == 0, answer.err
    name = "dog-Denoiser-00000600-before-after.png"
    assert answer.out.strip() == name
    assert (tmp_path / name).read_bytes() == png(7)
    assert desk.run("samples", "dog", "-o", str(tmp_path / "x/a.png")).code == 0
    assert (tmp_path / "x/a.png").read_bytes() == png(7)


def test_samples_that_are_not_there_yet_say_how_to_wait(desk: Desk) -> None:
    desk.create("young")
    answer = desk.run("samples", "young")
    assert answer.code == 1
    assert "no sample picture yet" in answer.err
    assert "kubebooth watch young" in answer.err


def test_a_model_is_fetched_whole_and_verified(desk: Desk, tmp_path: Path) -> None:
    manifest = _trained(desk)
    target = tmp_path / "model"
    answer = desk.run("fetch", "dog", "-o", str(target))
    assert answer.code == 0, answer.err
    assert f"2 files, 50.0 kB, verified {manifest.digest[:19]}" in plain(answer.out)
    assert (target / "unet/w.safetensors").read_bytes() == bytes(50_000)
    assert desk.run("fetch", "dog", "-o", str(target)).code == 0


def test_a_damaged_model_is_refused(desk: Desk, tmp_path: Path) -> None:
    _trained(desk)
    key = f"sessions/{desk.namespace}/dog/runs/0123456789ab/artifacts/diffusers/abc"
    desk.store().write(f"{key}/unet/w.safetensors", bytes(49_999) + b"x")
    answer = desk.run("fetch", "dog", "-o", str(tmp_path / "model"))
    assert answer.code == 1
    assert not (tmp_path / "model").exists()
    assert "SHA-256" in answer.err


def test_a_file_of_the_users_is_left_as_it_is(desk: Desk, tmp_path: Path) -> None:
    _trained(desk)
    (tmp_path / "model_index.json").write_text("mine")
    answer = desk.run("fetch", "dog", "-o", str(tmp_path))
    assert answer.code == 1
    assert "left as it is" in answer.err
    assert (tmp_path / "model_index.json").read_text() == "mine"


def test_a_wrong_artifact_name_lists_what_there_is(desk: Desk, tmp_path: Path) -> None:
    _trained(desk)
    answer = desk.run("fetch", "dog", "--artifact", "ckpt", "-o", str(tmp_path / "m"))
    assert answer.code == 1
    assert "it has: diffusers" in answer.err


def test_logs_of_a_session_without_worker_say_so(desk: Desk) -> None:
    desk.create("idle")
    answer = desk.run("logs", "idle")
    assert answer.code == 1
    assert "no worker pod" in answer.err


def test_logs_of_a_pod_that_waits_tell_why(desk: Desk) -> None:
    desk.create("waiting")
    pods = f"/api/v1/namespaces/{desk.namespace}/pods"
    labels = {"app.kubernetes.io/managed-by": "kubebooth", "kubebooth.io/session": "waiting"}
    containers = [{"name": "main", "image": "none"}]
    desk.plane.api.post(
        pods, {"metadata": {"name": "w", "labels": labels}, "spec": {"containers": containers}}
    )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    desk.plane.api.merge(
        f"{pods}/w/status",
        {
            "status": {
                "startTime": now,
                "containerStatuses": [
                    {
                        "name": "main",
                        "image": "none",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": state,
                    }
                ],
            }
        },
    )
    answer = desk.run("logs", "waiting")
    assert answer.code == 1
    assert "ImagePullBackOff no such image" in answer.err
