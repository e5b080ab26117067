"""What the API server fills in is exactly what the models fill in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_api.v1alpha1 import API_VERSION, GROUP, VERSION
from kubebooth_cluster.testing import RealApi

from tests.contract.refusal import GOOD

DEEP: dict[str, dict[str, Any]] = {
    "DreamboothSession": {
        **GOOD["DreamboothSession"],
        "captions": {"mode": "Model", "model": {"model": "m", "budget": {}, "sidecar": {}}},
        "gates": [{"name": "one", "question": "Is one person visible?"}],
        "preprocess": {"buckets": {}},
        "training": {
            "method": "LoRA",
            "lora": {},
            "ema": {},
            "validation": {},
            "priorPreservation": {"classPrompt": "a cat"},
            "conceptStage": {"sources": [{"store": {"key": "c"}}]},
        },
        "trackers": {"mlflow": {"trackingUri": "https://mlflow.example.com"}},
        "runtime": {"tolerations": [{"key": "gpu"}]},
    },
    "ModelConversion": {
        **GOOD["ModelConversion"],
        "mergeLoras": [{"source": {"store": {"key": "l"}}}],
        "runtime": {},
    },
    "WebUIInstance": {**GOOD["WebUIInstance"], "runtime": {"resources": {"gpu": 0}}},
}


def defaulted(server: RealApi, kind: Kind, spec: dict[str, Any]) -> dict[str, Any]:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/default/{kind.plural}?dryRun=All"
    metadata = {"name": "short", "namespace": "default"}
    body = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": metadata, "spec": spec}
    made: dict[str, Any] = server.api.post(f"{path}&fieldValidation=Strict", body)["spec"]
    return made


@pytest.mark.parametrize("specs", [GOOD, DEEP], ids=["short", "deep"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_spec_reads_back_with_the_defaults_of_the_models(
    server: RealApi, kind: Kind, specs: dict[str, dict[str, Any]]
) -> None:
    written = specs[kind.kind]
    stored = defaulted(server, kind, written)
    assert stored == json.loads(json.dumps(kind.spec.parse(written).dump()))
    assert kind.spec.parse(stored) == kind.spec.parse(written)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_spec_with_defaults_filled_in_changes_no_more(server: RealApi, kind: Kind) -> None:
    once = defaulted(server, kind, DEEP[kind.kind])
    assert defaulted(server, kind, once) == once
