"""A DreamboothSession on real pods: what a user sees when all goes well, and when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kubebooth_api import layout
from kubebooth_cluster.testing import eventually
from kubebooth_store import read_manifest
from PIL import Image
from safetensors.torch import load_file

from tests.e2e.booth import SHAPES, Booth, small_spec


@pytest.fixture(scope="module")
def finished(booth: Booth) -> str:
    """The name of a session that ran to the end undisturbed."""
    name = "finished"
    booth.upload_pictures(name)
    booth.apply(name, small_spec())
    booth.wait(name, "Complete")
    return name


def test_a_session_becomes_a_published_model(booth: Booth, finished: str, tmp_path: Path) -> None:
    status = booth.status(finished)
    (artifact,) = status["artifacts"]
    fetched = booth.run_cli("fetch", finished, "--output", str(tmp_path / "model"))
    assert fetched.returncode == 0, fetched.stderr
    manifest = read_manifest(booth.store(), booth.store().key_of(artifact["uri"]))
    assert manifest is not None
    assert manifest.digest == artifact["digest"]
    before = load_file(SHAPES / "base/unet/diffusion_pytorch_model.safetensors")
    (weights,) = (tmp_path / "model").rglob("unet/*.safetensors")
    after = load_file(weights)
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)


def test_the_status_tells_what_came_of_it(booth: Booth, finished: str) -> None:
    status = booth.status(finished)
    conditions = {c["type"]: c for c in status["conditions"]}
    for kind in ("Ready", "Complete", "DatasetReady", "ModelReady", "Trained", "Exported"):
        assert conditions[kind]["status"] == "True", kind
    generation = booth.session(finished)["metadata"]["generation"]
    assert {c["observedGeneration"] for c in conditions.values()} == {generation}
    assert status["dataset"]["images"] == 6
    assert status["checkpoint"]["stage"] == "Denoiser"
    assert status["checkpoint"]["step"] == 12
    assert [attempt["outcome"] for attempt in status["attempts"]] == ["Succeeded", "Succeeded"]


def test_kubectl_get_alone_tells_a_person(booth: Booth, finished: str) -> None:
    header, row = booth.kubectl("get", "dbs", finished).splitlines()
    assert {"NAME", "PHASE", "PROGRESS", "AGE"} <= set(header.split())
    assert "100%" in row
    assert booth.kubectl("get", "kubebooth", "-o", "name")


def test_the_samples_are_a_picture(booth: Booth, finished: str, tmp_path: Path) -> None:
    picture = tmp_path / "grid.png"
    saved = booth.run_cli("samples", finished, "--output", str(picture))
    assert saved.returncode == 0, saved.stderr
    with Image.open(picture) as image:
        assert min(image.size) >= 256
        assert len(image.convert("RGB").resize((64, 64)).getcolors(64 * 64) or []) > 16


def test_events_tell_the_story(booth: Booth, finished: str) -> None:
    told = booth.kubectl("events", "--for", f"dreamboothsession/{finished}")
    assert "Complete" in told


def test_unchanged_inputs_never_train_twice(booth: Booth, finished: str) -> None:
    first = booth.status(finished)
    booth.kubectl("delete", "dbs", finished, "--wait=true")
    booth.apply(finished, small_spec())
    booth.wait(finished, "Complete")
    again = booth.status(finished)
    assert again["run"]["digest"] == first["run"]["digest"]
    assert again["artifacts"] == first["artifacts"]
    assert again["checkpoint"]["createdAt"] == first["checkpoint"]["createdAt"]


def test_more_steps_continue_and_another_seed_starts_beside(booth: Booth) -> None:
    name = "longer"
    booth.upload_pictures(name)
    booth.apply(name, small_spec())
    booth.wait(name, "Complete")
    first = booth.status(name)

    longer = small_spec(denoiser={"steps": 18, "learningRate": 1e-4})
    booth.apply(name, longer)
    booth.wait_for(
        name,
        "a longer run",
        lambda status: (
            status.get("artifacts", [{}])[0].get("digest") != first["artifacts"][0]["digest"]
        ),
    )
    booth.wait(name, "Complete")
    second = booth.status(name)
    assert second["run"]["digest"] == first["run"]["digest"]
    assert second["checkpoint"]["step"] == 18

    booth.apply(name, small_spec(seed=8))
    booth.wait_for(
        name,
        "another run",
        lambda status: status.get("run", {}).get("digest") != first["run"]["digest"],
    )
    booth.wait(name, "Complete")
    third = booth.status(name)
    assert third["run"]["uri"] != first["run"]["uri"]
    store = booth.store()
    assert read_manifest(store, store.key_of(second["artifacts"][0]["uri"])) is not None


def test_a_suspended_session_keeps_its_checkpoint_and_goes_on(booth: Booth) -> None:
    name = "paused"
    booth.upload_pictures(name)
    booth.apply(name, small_spec(denoiser={"steps": 80, "learningRate": 1e-4}))
    booth.wait_for(
        name,
        "denoiser steps",
        lambda s: s.get("progress", {}).get("stage") == "Denoiser",
    )
    booth.patch(name, {"spec": {"suspend": True}})
    booth.wait(name, "Suspended")
    eventually(
        lambda: all(
            pod["status"].get("phase") in {"Succeeded", "Failed"} for pod in booth.worker_pods(name)
        ),
        what="no running worker",
    )
    assert booth.condition(name, "Ready")["status"] == "False"
    resumed = booth.run_cli("resume", name)
    assert resumed.returncode == 0, resumed.stderr
    booth.wait(name, "Complete")
    assert booth.status(name)["checkpoint"]["step"] == 80


def test_a_broken_picture_is_named_before_a_gpu_is_asked_for(booth: Booth, tmp_path: Path) -> None:
    name = "broken"
    shutil.copytree(SHAPES / "subject", tmp_path / "pictures")
    whole = sorted((tmp_path / "pictures").glob("*.png"))[0]
    (tmp_path / "pictures/holiday.png").write_bytes(whole.read_bytes()[:200])
    booth.upload_pictures(name, tmp_path / "pictures")
    booth.apply(name, small_spec())
    booth.wait(name, "Failed")
    failure = booth.status(name)["lastFailure"]
    assert failure["exitCode"] == 65
    assert "holiday.png" in failure["message"]
    stages = {
        pod["metadata"]["labels"]["kubebooth.io/stage"].lower() for pod in booth.worker_pods(name)
    }
    assert stages == {"prepare"}


def test_a_failed_session_is_tried_again_when_asked(booth: Booth, tmp_path: Path) -> None:
    name = "mended"
    booth.apply(name, small_spec())
    booth.wait(name, "Failed")
    assert "upload" in booth.status(name)["lastFailure"]["message"]
    booth.upload_pictures(name)
    retried = booth.run_cli("retry", name)
    assert retried.returncode == 0, retried.stderr
    booth.wait_for(name, "a new try", lambda s: len(s.get("attempts", [])) > 1)
    booth.wait(name, "Complete")


def test_a_missing_base_model_is_named_with_its_key(booth: Booth) -> None:
    name = "baseless"
    booth.upload_pictures(name)
    spec = small_spec()
    spec["baseModel"]["source"]["store"]["key"] = "models/nowhere"
    booth.apply(name, spec)
    booth.wait(name, "Failed")
    assert "models/nowhere" in booth.status(name)["lastFailure"]["message"]


def test_missing_credentials_are_waited_for_with_the_cure(booth: Booth) -> None:
    name = "keyless"
    booth.upload_pictures(name)
    spec = small_spec()
    spec["storage"] = {"credentialsSecretRef": {"name": "my-keys"}}
    booth.apply(name, spec)
    told = eventually(
        lambda: next(
            (c for c in booth.status(name).get("conditions", []) if "my-keys" in c["message"]),
            None,
        ),
        what="a condition that names the Secret",
    )
    assert told["reason"] == "CredentialsMissing"
    secret = json.loads(booth.kubectl("get", "secret", "kubebooth-store", "-o", "json"))
    copy = {"data": secret["data"], "metadata": {"name": "my-keys"}}
    booth.cluster.api.post(f"/api/v1/namespaces/{booth.sessions}/secrets", copy)
    booth.wait(name, "Complete")


def test_deletion_keeps_or_purges_as_the_policy_says(booth: Booth) -> None:
    store = booth.store()
    for policy in ("Retain", "Delete"):
        name = f"policy-{policy.lower()}"
        booth.upload_pictures(name)
        spec = small_spec(priorPreservation=None, textEncoder={"steps": 0})
        spec["deletionPolicy"] = policy
        del spec["training"]["priorPreservation"]
        booth.apply(name, spec)
        booth.wait(name, "Complete")
        booth.kubectl("delete", "dbs", name, "--wait=true", "--timeout=120s")
        prefix = layout.session(booth.sessions, name)
        left = {entry.key.removeprefix(f"{prefix}/").split("/")[0] for entry in store.list(prefix)}
        kept = {"uploads", "datasets", "cache", "runs"}
        expected = {"uploads"} if policy == "Delete" else kept
        assert left == expected
        eventually(lambda name=name: not booth.worker_pods(name), what="no pods left")


def test_a_session_deleted_while_it_trains_leaves_no_pod(booth: Booth) -> None:
    name = "unwanted"
    booth.upload_pictures(name)
    booth.apply(name, small_spec(denoiser={"steps": 5000, "learningRate": 1e-4}))
    booth.wait_for(name, "training", lambda s: s.get("progress", {}).get("stage") == "Denoiser")
    booth.kubectl("delete", "dbs", name, "--wait=true", "--timeout=60s")
    eventually(lambda: not booth.worker_pods(name), what="no pods left")
