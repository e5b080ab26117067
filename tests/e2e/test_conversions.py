"""Trained models leave in the files that user interfaces read, and models are converted alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_cluster.testing import eventually, found
from safetensors.torch import load_file

from tests.e2e.booth import Booth, small_spec

CONVERSIONS = "/apis/kubebooth.io/v1alpha1/namespaces/{}/modelconversions"
OUTPUTS = [
    {"name": "diffusers"},
    {"name": "safetensors", "format": "Safetensors"},
    {"name": "ckpt", "format": "Ckpt", "precision": "Fp16"},
]


def conversion(booth: Booth, name: str) -> dict[str, Any]:
    """A conversion as it is; empty when it is gone."""
    return found(booth.cluster.api, f"{CONVERSIONS.format(booth.sessions)}/{name}") or {}


def convert(booth: Booth, name: str, spec: dict[str, Any]) -> None:
    """Server-side apply of a conversion."""
    booth.cluster.api.apply(
        f"{CONVERSIONS.format(booth.sessions)}/{name}",
        {
            "apiVersion": "kubebooth.io/v1alpha1",
            "kind": "ModelConversion",
            "metadata": {"name": name, "namespace": booth.sessions},
            "spec": spec,
        },
    )


def ended(booth: Booth, name: str, kind: str = "Complete") -> dict[str, Any]:
    """The status of a conversion once a condition of it is true."""

    def there() -> dict[str, Any] | None:
        status: dict[str, Any] = conversion(booth, name).get("status") or {}
        holds = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        if kind != "Failed" and "Failed" in holds:
            raise AssertionError(json.dumps(status, indent=1))
        return status if kind in holds else None

    return eventually(there, what=f"{kind} of {name}", timeout_s=180) or {}


@pytest.fixture(scope="module")
def exported(booth: Booth) -> str:
    """A session that was published in all three forms."""
    name = "exported"
    booth.upload_pictures(name)
    spec = small_spec(textEncoder={"steps": 0}, denoiser={"steps": 4, "learningRate": 1e-4})
    del spec["training"]["priorPreservation"]
    spec["retry"] = {"limit": 2, "backoffSeconds": 1}
    booth.apply(name, {**spec, "outputs": OUTPUTS, "deletionPolicy": "Delete"})
    booth.wait(name, "Complete")
    return name


def test_a_session_is_published_in_every_form_that_was_asked_for(
    booth: Booth, exported: str, tmp_path: Path
) -> None:
    artifacts = {artifact["name"]: artifact for artifact in booth.status(exported)["artifacts"]}
    assert {n: a["format"] for n, a in artifacts.items()} == {
        "diffusers": "Diffusers",
        "safetensors": "Safetensors",
        "ckpt": "Ckpt",
    }
    for name in artifacts:
        words = ("fetch", exported, "--artifact", name, "--output", str(tmp_path / name))
        fetched = booth.run_cli(*words)
        assert fetched.returncode == 0, fetched.stderr
    (single,) = (tmp_path / "safetensors").rglob("*.safetensors")
    (layout,) = (tmp_path / "diffusers").rglob("unet/*.safetensors")
    (pickled,) = (tmp_path / "ckpt").rglob("*.ckpt")
    whole, parts = load_file(single), load_file(layout)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert whole[key].equal(parts["conv_in.weight"])
    state = torch.load(pickled, weights_only=True, map_location="cpu")["state_dict"]
    assert state.keys() == whole.keys()
    assert state[key].dtype == torch.float16
    assert state[key].equal(whole[key].half())


def test_an_export_is_a_small_pod_of_a_conversion_that_the_session_owns(
    booth: Booth, exported: str
) -> None:
    listed = booth.cluster.api.get(CONVERSIONS.format(booth.sessions))["items"]
    owned = [c for c in listed if c["metadata"].get("labels", {}).get("kubebooth.io/output")]
    assert len(owned) == 2
    for made in owned:
        (owner,) = made["metadata"]["ownerReferences"]
        assert owner["name"] == exported
        assert made["status"]["counts"]["mismatched"] == 0
        assert made["status"]["detected"]["family"] == "sd"
        assert [attempt["stage"] for attempt in made["status"]["attempts"]] == ["Convert"]
    streaming = next(c for c in owned if c["spec"]["target"]["precision"] == "Keep")
    name = streaming["metadata"]["name"]
    pods = booth.cluster.api.get(f"/api/v1/namespaces/{booth.sessions}/pods")["items"]
    (pod,) = [p for p in pods if p["metadata"]["labels"].get("kubebooth.io/conversion") == name]
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "128Mi"}
    assert name in booth.kubectl("get", "mconv")


def test_a_model_of_the_store_is_converted_once_and_bad_input_is_told(booth: Booth) -> None:
    source = {"store": {"key": "models/shapes"}}
    asked = {"source": source, "target": {"format": "Safetensors"}, "variant": "sd15"}
    convert(booth, "alone", {**asked, "deletionPolicy": "Delete"})
    first = ended(booth, "alone")
    assert first["sourceDigest"].startswith("sha256:")
    assert first["artifact"]["size"] > 0
    convert(booth, "alone", {**asked, "deletionPolicy": "Delete", "retry": {"limit": 3}})
    eventually(
        lambda: (
            conversion(booth, "alone")["status"]["observedGeneration"]
            == conversion(booth, "alone")["metadata"]["generation"]
        ),
        what="a look at the new spec",
    )
    again = ended(booth, "alone")
    assert again["attempts"] == first["attempts"]
    convert(booth, "wrong", {**asked, "variant": "sdxl"})
    failure = ended(booth, "wrong", "Failed")["lastFailure"]
    assert failure["exitCode"] in {64, 65}
    assert "sdxl" in failure["message"]
    store = booth.store()
    prefix = store.key_of(first["artifact"]["uri"])
    booth.kubectl("delete", "mconv", "alone", "--wait=true", "--timeout=120s")
    assert list(store.list(prefix)) == []


def test_deleting_a_session_takes_its_exports_with_it(booth: Booth, exported: str) -> None:
    store = booth.store()
    uris = [artifact["uri"] for artifact in booth.status(exported)["artifacts"]]
    booth.kubectl("delete", "dbs", exported, "--wait=true", "--timeout=180s")
    assert [list(store.list(store.key_of(uri))) for uri in uris] == [[], [], []]
