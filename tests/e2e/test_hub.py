"""A base model from a hub: a Job of its own fetches it with a token, then it trains like others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.booth import SHAPES, Booth, small_spec
from tests.e2e.given import KUBECONFIG
from tests.integration.fetch.hub import Hub

pytestmark = pytest.mark.skipif(
    bool(KUBECONFIG), reason="pods of a given cluster cannot reach a server of this process"
)


@pytest.fixture(scope="module")
def hub(booth: Booth) -> Iterator[Hub]:
    """A hub with the shapes model behind a token, named in the chart's values."""
    folder = SHAPES / "base"
    files = {str(p.relative_to(folder)): p.read_bytes() for p in _files(folder)}
    with Hub(files, token="hf_secret") as served:
        booth.install(f"hub.endpoint={served.url}", "hub.allowPrivateAddresses=true")
        yield served


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_base_model_comes_from_a_hub_once_its_token_is_there(booth: Booth, hub: Hub) -> None:
    name = "from-the-hub"
    booth.upload_pictures(name)
    spec = small_spec(textEncoder={"steps": 0}, denoiser={"steps": 2, "learningRate": 1e-4})
    del spec["training"]["priorPreservation"]
    token = {"name": "hub-token", "key": "token"}
    source = {"repo": hub.repo, "revision": hub.revision, "tokenSecretRef": token}
    spec["baseModel"]["source"] = {"huggingFace": source}
    spec["retry"] = {"limit": 2, "backoffSeconds": 1}
    booth.apply(name, spec)
    booth.wait_for(
        name,
        "a word about the Secret",
        lambda s: any(
            c["reason"] == "TokenMissing" and "hub-token" in c["message"]
            for c in s.get("conditions", [])
        ),
    )
    secret = {
        "metadata": {"name": token["name"]},
        "data": {token["key"]: base64.b64encode(b"hf_secret").decode()},
    }
    booth.cluster.api.post(f"/api/v1/namespaces/{booth.sessions}/secrets", secret)
    booth.wait(name, "Complete")
    status = booth.status(name)
    assert [attempt["stage"] for attempt in status["attempts"]] == ["Fetch", "Prepare", "Train"]
    assert status["fetched"][0]["artifact"]["uri"].rpartition("/")[2].startswith("fetched-")
    assert status["run"]["baseModelDigest"] == status["baseModel"]["digest"]
    assert hub.seen
    variables = {
        pod["metadata"]["labels"]["kubebooth.io/stage"]: {
            entry["name"] for entry in pod["spec"]["containers"][0]["env"]
        }
        for pod in booth.worker_pods(name)
    }
    tokens = {
        stage: [n for n in names if n.startswith("KUBEBOOTH_TOKEN_")]
        for stage, names in variables.items()
    }
    assert [stage for stage, found in tokens.items() if found] == ["fetch"]
