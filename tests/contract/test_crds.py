"""The real API server takes the CRDs and shows people what they say."""

from __future__ import annotations

from typing import Any

import pytest
from kubebooth_api.crd.definition import definition
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_api.v1alpha1 import API_VERSION, GROUP, VERSION
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.dataset import Concept
from kubebooth_api.v1alpha1.session import Progress
from kubebooth_api.v1alpha1.training import Training
from kubebooth_api.v1alpha1.webui import Auth
from kubebooth_cluster.api import ApiError
from kubebooth_cluster.testing import RealApi, eventually

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def crd(server: RealApi, kind: Kind) -> dict[str, Any]:
    name = definition(kind)["metadata"]["name"]
    got: dict[str, Any] = server.api.get(
        f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    )
    return got


@every_kind
def test_a_crd_is_established_and_its_schema_is_structural(server: RealApi, kind: Kind) -> None:
    conditions = {c["type"]: c for c in crd(server, kind)["status"]["conditions"]}
    assert conditions["Established"]["status"] == "True"
    assert conditions["NamesAccepted"]["status"] == "True"
    assert "NonStructuralSchema" not in conditions


def explained(server: RealApi, path: str) -> str:
    """What `kubectl explain` says; the server publishes a new kind's schema after a moment."""
    return eventually(
        lambda: " ".join(server.kubectl("explain", path, check=False).stdout.split()),
        what=f"explanation of {path}",
    )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("dbs.spec.training.resolution", Training.model_fields["resolution"].description),
        ("dbs.spec.concepts.token", Concept.model_fields["token"].description),
        ("dbs.status.progress.percentage", Progress.model_fields["percentage"].description),
        ("mconv.spec.verify", ModelConversionSpec.model_fields["verify"].description),
        ("webui.spec.auth.mode", Auth.model_fields["mode"].description),
    ],
)
def test_kubectl_explain_shows_the_docstring(server: RealApi, path: str, told: str) -> None:
    assert " ".join(told.split()) in explained(server, path)


def test_kubectl_explain_shows_the_enumeration(server: RealApi) -> None:
    assert "ENUM: Retain Delete" in explained(server, "dbs.spec.deletionPolicy")


def make(server: RealApi, namespace: str, kind: str, spec: dict[str, Any]) -> str:
    """Create an object named `one`; gives its path."""
    plural = next(k.plural for k in KINDS if k.kind == kind)
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{plural}"
    body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "one"}, "spec": spec}
    server.api.post(path, body)
    return f"{path}/one"


SESSION = {"baseModel": {"variant": "sd15"}, "concepts": [{"name": "cat", "token": "sks"}]}
UI = {"models": [{"name": "a", "catalog": "sd15"}]}


def test_kubectl_get_alone_tells_how_far_a_session_is(server: RealApi, namespace: str) -> None:
    path = make(server, namespace, "DreamboothSession", SESSION)
    status = {
        "phase": "Training",
        "progressText": "Denoiser 120/200 64%",
        "summary": "training the denoiser, 1 min left",
        "progress": {
            "stage": "Denoiser",
            "step": 120,
            "totalSteps": 200,
            "percentage": 64,
            "loss": 0.125,
            "updatedAt": "2026-01-01T00:00:00Z",
        },
        "checkpoint": {
            "stage": "Denoiser",
            "step": 100,
            "uri": "s3://b/checkpoints/denoiser-00000100",
            "digest": f"sha256:{'0' * 64}",
            "size": 1,
            "createdAt": "2026-01-01T00:00:00Z",
        },
    }
    server.api.merge(f"{path}/status", {"status": status})
    narrow = server.kubectl("--namespace", namespace, "get", "dbs").stdout
    assert narrow.splitlines()[0].split() == ["NAME", "PHASE", "PROGRESS", "MESSAGE", "AGE"]
    assert "Denoiser 120/200 64%" in narrow
    assert "training the denoiser, 1 min left" in narrow
    wide = server.kubectl("--namespace", namespace, "get", "dbs", "--output=wide").stdout
    assert "0.125" in wide
    assert "s3://b/checkpoints/denoiser-00000100" in wide


def test_the_category_lists_all_kinds(server: RealApi, namespace: str) -> None:
    make(server, namespace, "DreamboothSession", SESSION)
    make(server, namespace, "WebUIInstance", UI)
    words = ("--namespace", namespace, "get", "kubebooth", "--output=name")
    assert server.kubectl(*words).stdout.split() == [
        "dreamboothsession.kubebooth.io/one",
        "webuiinstance.kubebooth.io/one",
    ]


def test_a_status_reads_back_as_written_and_never_touches_the_spec(
    server: RealApi, namespace: str
) -> None:
    path = make(server, namespace, "DreamboothSession", SESSION)
    before = server.api.get(path)
    status = {"phase": "Pending", "retries": 1}
    change = {"status": status, "spec": {"suspend": True}}
    after = server.api.merge(f"{path}/status", change)
    assert after["status"] == status
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert server.api.merge(path, change)["spec"]["suspend"] is True


def test_a_web_ui_can_be_scaled_to_sleep_but_not_to_two(server: RealApi, namespace: str) -> None:
    path = make(server, namespace, "WebUIInstance", UI)
    server.api.merge(f"{path}/status", {"status": {"replicas": 1, "selector": "a=b"}})
    scale = server.api.get(f"{path}/scale")
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 1, "selector": "a=b"}
    server.api.merge(f"{path}/scale", {"spec": {"replicas": 0}})
    assert server.api.get(path)["spec"]["replicas"] == 0
    with pytest.raises(ApiError, match="should be less than or equal to 1"):
        server.api.merge(f"{path}/scale", {"spec": {"replicas": 2}})
