"""Specs that cannot be followed: named by field with the cure, and nothing is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from kubebooth_operator.doors import Stalled
from kubebooth_operator.session.served import CURES, VALUES, WHOLE, refuse_what_is_not_served

from tests.unit.session.booth import SETTINGS, Booth, spec

EXAMPLES = Path(__file__).parents[3] / "examples"


def _told(**fields: Any) -> str:
    with pytest.raises(Stalled) as caught:
        refuse_what_is_not_served(DreamboothSessionSpec.parse(spec(**fields)))
    assert caught.value.reason == "NotSupported"
    return caught.value.message


def test_an_invalid_spec_names_the_field() -> None:
    booth = Booth(training={"denoiser": {"steps": -1}})
    booth.settle()
    stalled = booth.condition("Stalled")
    assert stalled["status"] == "True"
    assert stalled["reason"] == "InvalidSpec"
    assert "spec.training.denoiser.steps" in stalled["message"]
    assert booth.jobs() == []


def test_a_spec_that_becomes_invalid_leaves_the_running_worker_alone() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.edit(training={"denoiser": {"steps": -1}})
    booth.settle()
    assert "follows the earlier spec" in booth.condition("Stalled")["message"]
    assert booth.holds("DatasetReady")
    assert booth.world.started == ["prepare", "train"]
    booth.edit(training=spec()["training"])
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train"]


def test_a_store_that_nobody_configured_names_the_fields() -> None:
    booth = Booth(settings=replace(SETTINGS, store_endpoint=None, store_bucket=None))
    booth.settle()
    stalled = booth.condition("Stalled")
    assert stalled["reason"] == "StorageNotConfigured"
    assert "spec.storage.endpoint and spec.storage.bucket" in stalled["message"]
    booth.edit(storage={"endpoint": "http://s3.example.com", "bucket": "mine"})
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["run"]["uri"].startswith("s3://mine/sessions/default/rex/runs/")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"preprocess": {"watermarks": "Warn"}}, "spec.preprocess.watermarks: Warn"),
        ({"captions": {"mode": "Model", "model": {"model": "m"}}}, "spec.captions.mode: Model"),
        ({"captions": {"lint": "Fail"}}, "spec.captions.lint: Fail"),
        ({"review": "Required"}, "spec.review: Required"),
        (
            {
                "training": {
                    "priorPreservation": {
                        "classPrompt": "a dog",
                        "sources": [{"url": {"href": "https://example.com/a.zip"}}],
                    }
                }
            },
            "spec.training.priorPreservation.sources[].url",
        ),
        (
            {"publish": {"oci": {"reference": "r.example.com/a:b"}}},
            "spec.publish.oci",
        ),
        ({"runtime": {"launcher": "JobSet"}}, "spec.runtime.launcher: JobSet"),
        ({"runtime": {"launcher": "JobSet", "nodes": 4}}, "spec.runtime.launcher: JobSet"),
        ({"deadlines": {"trainSeconds": 60}}, "spec.deadlines.trainSeconds: 60"),
        (
            {
                "concepts": [
                    {"name": "a", "token": "b", "sources": [{"configMap": {"name": "c"}}]},
                ]
            },
            "spec.concepts[].sources[].configMap",
        ),
    ],
)
def test_what_is_not_served_is_named_with_a_cure(fields: dict[str, Any], path: str) -> None:
    message = _told(**fields)
    assert path in message
    assert "; " in message


def test_everything_that_is_served_passes() -> None:
    refuse_what_is_not_served(
        DreamboothSessionSpec.parse(
            spec(
                suspend=True,
                concepts=[
                    {
                        "name": "a",
                        "token": "b",
                        "repeats": 2,
                        "sources": [{"store": {"key": "pictures/a"}}],
                    }
                ],
                training={
                    "resolution": 256,
                    "textEncoder": {"steps": 5, "mode": "Joint"},
                    "denoiser": {"steps": 5, "lrScheduler": "Cosine"},
                    "priorPreservation": {"classPrompt": "a dog", "numImages": 4},
                    "ema": {"decay": 0.9},
                    "minSnrGamma": 5.0,
                },
                samples={"prompts": ["a"], "everySteps": 2},
                storage={"bucket": "mine", "credentialsSecretRef": {"name": "keys"}},
                runtime={
                    "resources": {"gpu": 2},
                    "nodeSelector": {"a": "b"},
                    "tolerations": [{"operator": "Exists"}],
                    "queueName": "q",
                },
                retry={"limit": 9},
                ttlSecondsAfterFinished=5,
            )
        )
    )
    assert not set(WHOLE) & set(VALUES)
    assert all(CURES.values())


def test_the_quickstart_is_served() -> None:
    manifest = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    refuse_what_is_not_served(DreamboothSessionSpec.parse(manifest["spec"]))
    assert manifest["kind"] == "DreamboothSession"


def test_a_refused_spec_starts_nothing_and_says_so_once() -> None:
    booth = Booth(review="Required")
    booth.settle()
    assert booth.jobs() == []
    assert booth.condition("Stalled")["reason"] == "NotSupported"
    assert [event.reason for event in booth.simulator.told.events] == ["NotSupported"]
    assert [event.type for event in booth.simulator.told.events] == ["Warning"]
