"""How a conversion goes: from every kind of source to a published artifact, once."""

from __future__ import annotations

from typing import Any

import pytest
from kubebooth_api.artifacts import UNKNOWN_DIGEST
from kubebooth_api.runs import token_variable
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_operator.jobs.sources import LOOK_AGAIN_S

from tests.unit.conversion.desk import Desk, conversion, hub
from tests.unit.session.booth import session


def test_a_model_of_the_store_is_converted_and_told() -> None:
    desk = Desk(target={"format": "Ckpt", "precision": "Fp16", "name": "small"})
    desk.settle()
    assert desk.holds("Complete")
    assert desk.holds("Ready")
    assert not desk.holds("Reconciling")
    assert desk.world.started == ["convert"]
    (run,) = desk.world.converted
    assert run.source.uri == "s3://kubebooth/models/shapes"
    assert run.source.digest == UNKNOWN_DIGEST
    status = desk.status
    assert status["artifact"]["name"] == "small"
    assert status["artifact"]["format"] == "Ckpt"
    assert status["counts"] == {"tensors": 5, "dropped": 1, "mismatched": 0}
    assert status["detected"]["variant"] == "sd15"
    assert status["sourceDigest"].startswith("sha256:")
    assert [attempt["stage"] for attempt in status["attempts"]] == ["Convert"]
    assert status["phase"] == "Complete"
    assert status["progressText"] == "100%"


def test_the_same_conversion_is_never_made_twice() -> None:
    desk = Desk()
    desk.settle()
    desk.edit(retry={"limit": 9}, ttlSecondsAfterFinished=0, runtime={"nodeSelector": {"a": "b"}})
    desk.settle()
    assert desk.holds("Complete")
    assert desk.world.started == ["convert"]
    assert desk.jobs() == []


def test_other_options_are_refused_until_overwriting_is_allowed_or_the_name_is_another() -> None:
    desk = Desk()
    desk.settle()
    before = desk.status["artifact"]
    desk.edit(target={"format": "Ckpt"})
    desk.settle()
    assert desk.condition("Stalled")["reason"] == "WouldOverwrite"
    assert "spec.overwrite" in desk.condition("Stalled")["message"]
    assert desk.status["artifact"] == before
    assert desk.world.started == ["convert"]
    desk.edit(target={"format": "Ckpt", "name": "other"})
    desk.settle()
    assert desk.holds("Complete")
    desk.edit(target={"format": "Safetensors", "name": "other"}, overwrite=True)
    desk.settle()
    assert desk.holds("Complete")
    assert desk.status["artifact"]["format"] == "Safetensors"
    assert desk.world.converted[-1].overwrite


def test_a_spec_that_goes_back_is_complete_again_without_work() -> None:
    desk = Desk()
    desk.settle()
    desk.edit(target={"format": "Ckpt"})
    desk.settle()
    desk.edit(target={"format": "Safetensors"})
    desk.settle()
    assert desk.holds("Complete")
    assert len(desk.world.converted) == 1


def test_a_dry_run_plans_and_publishes_nothing() -> None:
    desk = Desk(dryRun=True)
    desk.settle()
    assert desk.holds("Complete")
    assert "artifact" not in desk.status
    assert desk.status["counts"]["tensors"] == 5
    assert "dryRun writes nothing" in desk.status["message"]
    desk.edit(dryRun=False)
    desk.settle()
    assert desk.status["artifact"]["name"] == "turned"


def test_models_from_outside_are_fetched_first_one_after_the_other() -> None:
    token = {"name": "hub", "key": "token"}
    desk = Desk(
        source=hub(tokenSecretRef=token),
        vae={"url": {"href": "https://a.example.com/vae.safetensors"}},
        mergeLoras=[
            {"source": {"store": {"key": "loras/a"}}, "weight": 0.5},
            {"source": hub("someone/lora")},
        ],
    )
    desk.settle()
    assert desk.holds("Complete")
    assert desk.world.started == ["fetch", "fetch", "fetch", "convert"]
    (run,) = desk.world.converted
    assert run.source.uri.startswith("s3://kubebooth/models/x")
    assert run.vae is not None
    assert [lora.weight for lora in run.merge_loras] == [0.5, 1.0]
    assert run.merge_loras[0].artifact.uri == "s3://kubebooth/loras/a"
    variable = token_variable(SecretKeyRef(**token))
    assert variable not in {entry["name"] for entry in desk.container("convert")["env"]}


def test_a_fetch_knows_the_token_and_needs_little() -> None:
    token = {"name": "hub", "key": "token"}
    desk = Desk(source=hub(tokenSecretRef=token), variant="sdxl")
    desk.world.hold = lambda stage: True
    desk.settle()
    container = desk.container("fetch")
    variable = token_variable(SecretKeyRef(**token))
    assert variable in {entry["name"] for entry in container["env"]}
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert desk.status["phase"] == "Fetching"


def test_a_session_is_waited_for_and_its_digest_is_pinned() -> None:
    desk = Desk(source={"session": {"name": "rex"}})
    desk.settle()
    assert desk.condition("SourceReady")["reason"] == "SourceMissing"
    rex = desk.simulator.create(session("rex"))
    before = desk.simulator.now
    desk.settle()
    assert desk.holds("Complete")
    # It was woken: nobody waited until the next look that is due anyway.
    assert (desk.finished_at() - before).total_seconds() < LOOK_AGAIN_S / 2
    made = desk.simulator.parent(rex)
    assert made is not None
    assert desk.status["sourceDigest"] == made["status"]["artifacts"][0]["digest"]
    desk.simulator.edit_spec(rex, training={"denoiser": {"steps": 77}})
    desk.settle()
    assert desk.holds("Complete")
    assert len(desk.world.converted) == 1
    desk.edit(overwrite=True)
    desk.settle()
    remade = desk.simulator.parent(rex)
    assert remade is not None
    assert len(desk.world.converted) == 2
    assert desk.status["sourceDigest"] == remade["status"]["artifacts"][0]["digest"]


def test_a_suspended_conversion_stops_its_worker_and_goes_on_later() -> None:
    desk = Desk()
    desk.world.hold = lambda stage: True
    desk.settle()
    desk.edit(suspend=True)
    desk.settle()
    assert desk.holds("Suspended")
    assert desk.jobs() == []
    desk.world.hold = lambda stage: False
    desk.edit(suspend=False)
    desk.settle()
    assert desk.holds("Complete")


def test_a_passing_fault_is_tried_again_and_a_bad_model_is_not() -> None:
    desk = Desk()
    codes = iter((67, 137, 0))
    desk.world.next_exit = lambda stage: next(codes)
    desk.settle()
    assert desk.holds("Complete")
    assert desk.world.started == ["convert"] * 3
    bad = Desk()
    bad.world.next_exit = lambda stage: 65
    bad.settle()
    assert bad.holds("Failed")
    assert bad.condition("Failed")["reason"] == "DataError"
    assert bad.world.started == ["convert"]
    assert "kubebooth retry mconv/turned" in bad.condition("Failed")["message"]
    bad.world.next_exit = lambda stage: 0
    bad.retry("1")
    bad.settle()
    assert bad.holds("Complete")


@pytest.mark.parametrize(
    ("fields", "memory"),
    [
        ({}, "128Mi"),
        ({"target": {"format": "Ckpt", "precision": "Fp16"}}, "2Gi"),
        ({"target": {"format": "Ckpt", "componentPrecision": {"vae": "Fp32"}}}, "2Gi"),
        ({"mergeLoras": [{"source": {"store": {"key": "a"}}}]}, "4Gi"),
        ({"verify": {"load": True}, "variant": "sd15"}, "8Gi"),
        ({"verify": {"load": True}}, "20Gi"),
        ({"runtime": {"resources": {"memory": "3Gi"}}}, "3Gi"),
        ({"runtime": {"resources": {"memory": "16Gi", "gpu": 1}}}, "128Mi"),
    ],
)
def test_memory_follows_from_the_work_and_no_accelerator_is_ever_asked_for(
    fields: dict[str, Any], memory: str
) -> None:
    desk = Desk(**fields)
    desk.settle()
    assert desk.container("convert")["resources"]["limits"] == {"cpu": "1", "memory": memory}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"runtime": {"resources": {"gpu": 2}}}, "spec.runtime.resources.gpu"),
        ({"runtime": {"launcher": "JobSet"}}, "spec.runtime.launcher"),
        ({"component": "Lora", "vae": {"store": {"key": "v"}}}, "spec.vae"),
        ({"component": "Lora", "target": {"format": "Ckpt"}}, "spec.target.format"),
        ({"target": {"format": "Tar"}}, "spec.target.format"),
    ],
)
def test_what_cannot_be_is_told_by_field_and_starts_nothing(
    fields: dict[str, Any], field: str
) -> None:
    desk = Desk(**fields)
    desk.settle()
    assert desk.holds("Stalled")
    assert field in desk.status["message"]
    assert desk.jobs() == []


def test_a_name_that_no_artifact_can_have_is_shortened() -> None:
    desk = Desk(name="a.b" + "c" * 80)
    desk.settle()
    assert desk.holds("Complete")
    assert desk.status["artifact"]["name"] == ("a-b" + "c" * 80)[:38]


def test_deletion_purges_what_the_conversion_made_and_nothing_else() -> None:
    desk = Desk(deletionPolicy="Delete")
    desk.settle()
    desk.simulator.delete(desk.key)
    desk.simulator.settle()
    assert not desk.there
    assert desk.world.purged == 1
    kept = Desk()
    kept.settle()
    kept.simulator.delete(kept.key)
    kept.simulator.settle()
    assert not kept.there
    assert kept.world.purged == 0


def test_two_conversions_of_one_name_space_do_not_meet() -> None:
    desk = Desk()
    other = desk.simulator.create(conversion("turned-2", target={"format": "Ckpt"}))
    desk.settle()
    assert desk.holds("Complete")
    there = desk.simulator.parent(other)
    assert there is not None
    assert there["status"]["artifact"]["format"] == "Ckpt"
