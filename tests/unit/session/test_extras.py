"""What prepare and train report beside their main result reaches the next run and the status."""

from __future__ import annotations

from typing import Any

from tests.unit.session.booth import Booth


def _training(**more: Any) -> dict[str, Any]:
    return {"textEncoder": {"steps": 10}, "denoiser": {"steps": 20}, **more}


def _store(key: str) -> dict[str, Any]:
    return {"sources": [{"store": {"key": key}}]}


def test_given_class_and_concept_pictures_reach_the_training() -> None:
    booth = Booth(
        training=_training(
            priorPreservation={"classPrompt": "a dog", **_store("dogs")},
            conceptStage=_store("concept"),
        )
    )
    booth.settle()
    assert booth.holds("Complete")
    (run,) = booth.world.asked
    assert run.class_images is not None
    assert run.concept_images is not None
    assert booth.status["classImages"]["digest"] == run.class_images.digest
    assert booth.status["conceptImages"]["digest"] == run.concept_images.digest


def test_other_given_pictures_are_another_run_and_none_are_forgotten() -> None:
    prior = {"classPrompt": "a dog"}
    booth = Booth(training=_training(priorPreservation={**prior, **_store("dogs")}))
    booth.settle()
    first = booth.status["run"]["digest"]
    booth.edit(training=_training(priorPreservation={**prior, **_store("other-dogs")}))
    booth.settle()
    assert booth.status["run"]["digest"] != first
    booth.edit(training=_training(priorPreservation=prior))
    booth.settle()
    assert booth.holds("Complete")
    assert "classImages" not in booth.status
    assert booth.world.asked[-1].class_images is None


def test_hints_and_the_memory_profile_are_told() -> None:
    booth = Booth()
    booth.settle()
    assert booth.status["hints"] == ["the validation loss rises from step 15: stop there"]
    assert booth.status["run"]["effective"] == {
        "resolution": 512,
        "memoryProfile": "checkpointing",
    }
    assert booth.status["attempts"][-1]["memoryProfile"] == "checkpointing"
    booth.world.hold = lambda stage: stage == "train"
    booth.edit(rerun="again")
    booth.settle()
    assert "hints" not in booth.status or booth.status["hints"] == []
    assert "effective" not in booth.status["run"]
