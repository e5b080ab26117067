"""Outputs in single files: owned conversions that follow the trained model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from kubebooth_operator.session import asked

from tests.unit.session.booth import Booth, Json, spec

BOTH = [
    {"name": "diffusers"},
    {"name": "safetensors", "format": "Safetensors"},
    {"name": "ckpt", "format": "Ckpt", "precision": "Fp16"},
]


def conversions(booth: Booth) -> dict[str, Json]:
    """Conversions by output."""
    return {
        body["metadata"]["labels"]["kubebooth.io/output"]: body
        for body in booth.simulator.server.all("ModelConversion")
    }


def artifacts(booth: Booth) -> dict[str, Json]:
    """What the session tells to be published, by name."""
    return {artifact["name"]: artifact for artifact in booth.status.get("artifacts", ())}


def test_a_session_is_complete_when_its_exports_are() -> None:
    booth = Booth(outputs=BOTH)
    booth.world.hold = lambda stage: stage == "convert"
    booth.settle()
    assert booth.holds("Trained")
    assert not booth.holds("Exported")
    assert not booth.holds("Complete")
    assert booth.status["phase"] == "Exporting"
    assert booth.status["progress"]["stage"] == "Export"
    assert "completedAt" not in booth.status
    assert list(artifacts(booth)) == ["diffusers"]
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert booth.holds("Exported")
    assert set(artifacts(booth)) == {"diffusers", "safetensors", "ckpt"}
    assert artifacts(booth)["ckpt"]["format"] == "Ckpt"
    assert booth.status["completedAt"]
    assert booth.status["progressText"] == "100%"


def test_a_conversion_belongs_to_the_session_and_pins_its_model() -> None:
    booth = Booth(outputs=BOTH, storage={"bucket": "mine"}, deletionPolicy="Delete")
    booth.settle()
    made = conversions(booth)["ckpt"]
    parent = booth.simulator.parent(booth.key)
    assert parent is not None
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (parent["metadata"]["uid"], True)
    parsed = ModelConversionSpec.parse(made["spec"])
    model = artifacts(booth)["diffusers"]
    assert parsed.source.digest == model["digest"]
    assert parsed.source.store is not None
    assert f"s3://mine/{parsed.source.store.key}" == model["uri"]
    assert (parsed.target.format, parsed.target.precision) == ("Ckpt", "Fp16")
    assert (parsed.variant, parsed.prediction_type) == ("sd15", "Epsilon")
    assert parsed.deletion_policy == "Delete"
    assert parsed.storage.bucket == "mine"
    (run,) = [r for r in booth.world.converted if r.target.name == "ckpt"]
    assert run.source.digest == model["digest"]


def test_an_export_without_a_diffusers_output_gets_one_to_be_made_from() -> None:
    booth = Booth(outputs=[{"name": "file", "format": "Safetensors"}])
    booth.settle()
    assert booth.holds("Complete")
    assert set(artifacts(booth)) == {"diffusers", "file"}
    booth.edit(
        outputs=[
            {"name": "diffusers", "precision": "Fp16"},
            {"name": "file", "format": "Safetensors"},
        ]
    )
    booth.settle()
    assert booth.holds("Complete")
    assert set(artifacts(booth)) == {"diffusers", "diffusers-full", "file"}


def test_a_lora_is_exported_as_a_lora() -> None:
    booth = Booth(
        training={"method": "LoRA", "denoiser": {"steps": 20}},
        outputs=[{"name": "file", "format": "Safetensors"}],
    )
    booth.settle()
    assert booth.holds("Complete")
    (run,) = booth.world.converted
    assert run.component == "Lora"


def test_outputs_that_come_and_go_leave_the_training_alone() -> None:
    booth = Booth()
    booth.settle()
    booth.edit(outputs=BOTH)
    booth.settle()
    assert booth.holds("Complete")
    assert set(artifacts(booth)) == {"diffusers", "safetensors", "ckpt"}
    booth.edit(outputs=BOTH[:2])
    booth.settle()
    assert set(conversions(booth)) == {"safetensors"}
    assert set(artifacts(booth)) == {"diffusers", "safetensors"}
    booth.edit(outputs=BOTH[:1])
    booth.settle()
    assert conversions(booth) == {}
    assert set(artifacts(booth)) == {"diffusers"}
    assert booth.world.started.count("train") == 1
    assert booth.holds("Complete")


def test_other_options_make_another_conversion_and_the_old_one_stays_until_it_is_done() -> None:
    booth = Booth(outputs=BOTH)
    booth.settle()
    before, old = conversions(booth)["ckpt"], artifacts(booth)["ckpt"]
    booth.world.hold = lambda stage: stage == "convert"
    booth.edit(outputs=[*BOTH[:2], {"name": "ckpt", "format": "Ckpt", "precision": "Bf16"}])
    booth.settle()
    assert len(booth.simulator.server.all("ModelConversion")) == 3
    assert artifacts(booth)["ckpt"] == old
    assert not booth.holds("Complete")
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert conversions(booth)["ckpt"]["metadata"]["name"] != before["metadata"]["name"]
    assert artifacts(booth)["ckpt"]["digest"] != old["digest"]
    assert len(booth.simulator.server.all("ModelConversion")) == 2


def test_a_model_that_is_trained_anew_is_exported_anew() -> None:
    booth = Booth(outputs=BOTH)
    booth.settle()
    old = artifacts(booth)
    booth.world.hold = lambda stage: stage == "train"
    booth.edit(training={"textEncoder": {"steps": 10}, "denoiser": {"steps": 90}})
    booth.settle()
    assert not booth.holds("Complete")
    assert artifacts(booth) == old
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    now = artifacts(booth)
    assert set(now) == set(old)
    assert all(now[name]["digest"] != old[name]["digest"] for name in now)
    assert set(conversions(booth)) == {"safetensors", "ckpt"}
    parsed = ModelConversionSpec.parse(conversions(booth)["ckpt"]["spec"])
    assert parsed.source.digest == now["diffusers"]["digest"]


def test_conversions_of_a_model_that_is_not_wanted_any_more_are_stopped() -> None:
    booth = Booth(outputs=BOTH)
    booth.world.hold = lambda stage: stage == "convert"
    booth.settle()
    assert len(conversions(booth)) == 2
    booth.world.hold = lambda stage: stage == "train"
    booth.edit(training={"textEncoder": {"steps": 10}, "denoiser": {"steps": 90}})
    booth.settle()
    assert all("artifact" in c.get("status", {}) for c in conversions(booth).values())


def test_why_an_export_failed_is_told_in_the_session_and_a_retry_reaches_it() -> None:
    booth = Booth(outputs=BOTH, ttlSecondsAfterFinished=5)
    booth.world.next_exit = lambda stage: 65 if stage == "convert" else 0
    booth.settle()
    assert booth.holds("Failed")
    assert booth.holds("Trained")
    failed = booth.condition("Failed")
    assert failed["reason"] == "DataError"
    assert "output safetensors" in failed["message"]
    assert booth.condition("Exported")["reason"] == "DataError"
    booth.world.next_exit = lambda stage: 0
    booth.retry("again")
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started.count("train") == 1


def test_a_suspended_session_suspends_its_conversions_and_begins_none() -> None:
    booth = Booth(outputs=BOTH)
    booth.world.hold = lambda stage: stage == "convert"
    booth.settle()
    booth.edit(suspend=True)
    booth.settle()
    assert booth.holds("Suspended")
    assert all(c["spec"]["suspend"] for c in conversions(booth).values())
    running = [p for p in booth.simulator.server.all("Pod") if p["status"]["phase"] == "Running"]
    assert running == []
    booth.world.hold = lambda stage: False
    booth.edit(suspend=False)
    booth.settle()
    assert booth.holds("Complete")
    fresh = Booth()
    fresh.settle()
    fresh.edit(suspend=True, outputs=BOTH)
    fresh.settle()
    assert conversions(fresh) == {}
    assert fresh.holds("Suspended")


def test_somebody_who_deletes_a_conversion_gets_it_back() -> None:
    booth = Booth(outputs=BOTH)
    booth.settle()
    made = conversions(booth)["ckpt"]["metadata"]
    booth.simulator.server.remove("ModelConversion", made["namespace"], made["name"])
    booth.settle()
    assert booth.holds("Complete")
    assert set(conversions(booth)) == {"safetensors", "ckpt"}


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_deleting_the_session_deletes_its_conversions_before_their_source(policy: str) -> None:
    booth = Booth(outputs=BOTH, deletionPolicy=policy)
    booth.settle()
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert not booth.there
    assert conversions(booth) == {}
    purges = [stage for stage in booth.world.started if stage == "purge"]
    assert len(purges) == (3 if policy == "Delete" else 0)


_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,200}[a-z0-9])?", fullmatch=True)
_OUTPUTS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@budget(max_examples=6, deadline=None)
@given(_NAMES, _OUTPUTS)
def test_a_conversions_name_is_a_label_whatever_the_session_is_called(
    name: str, output: str
) -> None:
    booth = Booth(name=name, outputs=[{"name": output, "format": "Safetensors"}])
    booth.settle()
    (made,) = booth.simulator.server.all("ModelConversion")
    assert len(made["metadata"]["name"]) <= 63
    assert made["metadata"]["name"].strip("-.") == made["metadata"]["name"]
    assert booth.holds("Complete")


def test_adding_an_export_is_no_other_training_target() -> None:
    def outputs(**fields: Any) -> tuple[str, ...]:
        parsed = DreamboothSessionSpec.parse(spec(**fields))
        return tuple(output.name for output in asked.published(parsed))

    assert outputs() == outputs(outputs=BOTH) == ("diffusers",)
