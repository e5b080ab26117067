"""Children of a session as they are applied, character by character.

After an intended change: `KUBEBOOTH_UPDATE_GOLDEN=1 pytest tests/golden/session`, then read the
difference. A digest that changes with a new version is no intended change: that version would
replace every running Job, or reopen every complete session. Only the Run itself, which grows with
the contract, and the name that follows from it are left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session import (
    DatasetStatus,
    DreamboothSessionSpec,
    DreamboothSessionStatus,
)
from kubebooth_operator.conversion import asked as conversions
from kubebooth_operator.conversion.asked import Models
from kubebooth_operator.doors import Observed
from kubebooth_operator.jobs import children, readings
from kubebooth_operator.jobs.sources import Asker, fetch
from kubebooth_operator.jobs.work import Place, Work, resolve_place
from kubebooth_operator.session import asked, exports
from kubebooth_operator.settings import Settings

HERE = Path(__file__).parent
SETTINGS = Settings(
    store_endpoint="http://kubebooth-store.kubebooth.svc:8333",
    store_bucket="kubebooth",
    store_prefix="lab",
    trainer_image="ghcr.io/kubebooth/trainer:0.1.0",
)
SERIES = "sha256:" + "5" * 64


def _spec(runtime: dict[str, Any]) -> DreamboothSessionSpec:
    return DreamboothSessionSpec.parse(
        {
            "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/shapes"}}},
            "concepts": [{"name": "dog", "token": "sks", "className": "dog"}],
            "training": {
                "textEncoder": {"steps": 350},
                "denoiser": {"steps": 1500},
                "priorPreservation": {"classPrompt": "a dog"},
                "seed": 7,
            },
            "runtime": runtime,
        }
    )


def _works(spec: DreamboothSessionSpec) -> dict[str, Work]:
    place = resolve_place(spec.storage, SETTINGS)
    identity = SessionIdentity(
        namespace="artists", name="rex", uid="6f1c2b1e-0000-4000-8000-000000000001"
    )
    root = "s3://kubebooth/lab"
    dataset = DatasetStatus(
        digest="sha256:" + "1" * 64,
        uri=f"{root}/sessions/artists/rex/datasets/{'1' * 12}",
        images=6,
        size=1234,
    )
    base_model = Artifact(
        name="shapes",
        uri=f"{root}/models/shapes",
        digest="sha256:" + "2" * 64,
        size=5678,
        format="Diffusers",
    )
    return {
        "prepare": asked.prepare(spec, identity, place),
        "train": asked.train(spec, identity, place, dataset=dataset, base_model=base_model),
        "purge": asked.purge(spec, identity, place),
    }


def _conversion_works() -> tuple[ModelConversionSpec, dict[str, Work]]:
    """A conversion of a hub's model to fp16, and what is asked of workers for it."""
    spec = ModelConversionSpec.parse(
        {
            "source": {
                "huggingFace": {
                    "repo": "someone/model",
                    "revision": "0123456789abcdef0123456789abcdef01234567",
                    "tokenSecretRef": {"name": "hub", "key": "token"},
                }
            },
            "target": {"format": "Ckpt", "precision": "Fp16"},
        }
    )
    place = resolve_place(spec.storage, SETTINGS)
    identity = SessionIdentity(
        namespace="artists", name="rex", uid="6f1c2b1e-0000-4000-8000-000000000002"
    )
    (wanted,) = conversions.wanted(spec)
    source = Artifact(
        name="model",
        uri=f"s3://kubebooth/lab/models/fetched-{'3' * 12}",
        digest="sha256:" + "3" * 64,
        size=9,
    )
    asker = Asker("ModelConversion", identity, place, SETTINGS, spec.runtime, spec.storage)
    return spec, {
        "fetch": fetch(wanted, asker),
        "convert": conversions.convert(spec, identity, place, Models(source)),
        "purge-conversion": conversions.purge(spec, identity, place),
    }


PLAIN: dict[str, Any] = {"resources": {"cpu": "4", "memory": "24Gi", "gpu": 1}}
RICH: dict[str, Any] = {
    "image": "registry.example.com/trainer:2",
    "imagePullSecrets": [{"name": "registry"}],
    "resources": {"gpu": 1, "gpuResource": "nvidia.com/mig-3g.40gb", "scratch": "50Gi"},
    "nodeSelector": {"gpu": "big"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
    "queueName": "team-a",
    "queuePriorityClassName": "low",
    "terminationGracePeriodSeconds": 300,
}


@pytest.mark.parametrize(
    ("name", "stage", "runtime"),
    [
        ("prepare", "prepare", PLAIN),
        ("train", "train", PLAIN),
        ("train-rich", "train", RICH),
        ("purge", "purge", PLAIN),
    ],
)
def test_children_are_as_they_were(name: str, stage: str, runtime: dict[str, Any]) -> None:
    spec = _spec(runtime)
    place = resolve_place(spec.storage, SETTINGS)
    _compare(name, _works(spec)[stage], spec.runtime, place)


@pytest.mark.parametrize("name", ["fetch", "convert", "purge-conversion"])
def test_children_of_a_conversion_are_as_they_were(name: str) -> None:
    spec, works = _conversion_works()
    place = resolve_place(spec.storage, SETTINGS)
    _compare(name, works[name], conversions.runtime(spec), place)


def test_the_conversion_of_an_export_is_as_it_was() -> None:
    spec = DreamboothSessionSpec.parse(
        {
            **_spec(RICH).dump(),
            "outputs": [{"name": "diffusers"}, {"name": "ckpt", "format": "Ckpt"}],
        }
    )
    parent = {
        "kind": "DreamboothSession",
        "metadata": {
            "name": "rex",
            "namespace": "artists",
            "uid": "6f1c2b1e-0000-4000-8000-000000000001",
        },
    }
    uri = f"s3://kubebooth/lab/sessions/artists/rex/runs/a/artifacts/diffusers/{'4' * 12}"
    model = Artifact(
        name="diffusers", uri=uri, digest="sha256:" + "4" * 64, size=7, format="Diffusers"
    )
    made = exports.manifests(
        readings.read(Observed(parent=parent), DreamboothSessionStatus),
        spec,
        resolve_place(spec.storage, SETTINGS),
        DreamboothSessionStatus(artifacts=(model,)),
    )
    _hold_against_golden("export", yaml.safe_dump(made["ckpt"], sort_keys=False, width=98))


def _compare(name: str, work: Work, runtime: Runtime, place: Place) -> None:
    config_map = children.config_map(work)
    manifests = [config_map, children.job(work, SERIES, runtime, place, SETTINGS)]
    text = yaml.safe_dump_all(
        [{**config_map, "data": {"run.json": "RUN"}}, manifests[1]],
        sort_keys=False,
        width=98,
        allow_unicode=True,
    ).replace(config_map["metadata"]["name"], f"rex-{work.stage.lower()}-DIGEST")
    _hold_against_golden(name, text)


def _hold_against_golden(name: str, text: str) -> None:
    golden = HERE / f"{name}.yaml"
    if os.environ.get("KUBEBOOTH_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text
