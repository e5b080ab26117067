"""Which stages a training has, which parts of the model each trains, and which states fit it.

Pure: it must not know tensors, stores or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kubebooth_api.v1alpha1.training import DenoiserStage, TextEncoderStage, Training

StageName = Literal["TextEncoder", "Concept", "Denoiser"]
Part = Literal["textEncoder", "denoiser"]
ORDER: tuple[StageName, ...] = ("TextEncoder", "Concept", "Denoiser")


@dataclass(frozen=True)
class Stage:
    """One stage: `steps` updates of `parts`, of which `keeps` survive its end."""

    name: StageName
    steps: int
    parts: tuple[Part, ...]
    keeps: tuple[Part, ...]


@dataclass(frozen=True)
class Position:
    """Updates that a state holds: `step` of stage `name`, after `text_steps` of the text encoder
    stage and `concept_steps` of the concept stage."""

    name: StageName
    step: int
    text_steps: int
    concept_steps: int = 0


def plan_stages(training: Training) -> tuple[Stage, ...]:
    """The stages in order; one with a target of 0 steps is left out.

    `JointDiscard` trains both parts in the stages of the text encoder and keeps the text encoder
    only. `Joint` trains both in one stage of `denoiser.steps`. The concept stage is a second stage
    of the text encoder, on other pictures.
    """
    text, concept, denoiser = training.text_encoder, training.concept_stage, training.denoiser
    both: tuple[Part, ...] = ("textEncoder", "denoiser")
    parts: tuple[Part, ...] = both if text.mode == "JointDiscard" else ("textEncoder",)
    joint = text.mode == "Joint" and text.steps > 0
    stages: list[Stage] = []
    if text.steps > 0 and not joint:
        stages.append(Stage("TextEncoder", text.steps, parts, ("textEncoder",)))
    if concept is not None:
        stages.append(Stage("Concept", concept.steps, parts, ("textEncoder",)))
    if joint:
        stages.append(Stage("Denoiser", denoiser.steps, both, both))
    elif denoiser.steps > 0:
        stages.append(Stage("Denoiser", denoiser.steps, ("denoiser",), ("denoiser",)))
    return tuple(stages)


def trained_parts(stages: tuple[Stage, ...]) -> frozenset[Part]:
    """Parts that learn in any of the stages."""
    return frozenset(part for stage in stages for part in stage.parts)


def kept_parts(stages: tuple[Stage, ...]) -> frozenset[Part]:
    """Parts whose training survives in the finished model."""
    return frozenset(part for stage in stages for part in stage.keeps)


def settings_of(training: Training, stage: Stage, part: Part) -> TextEncoderStage | DenoiserStage:
    """Learning rate, scheduler and warm-up of a part in a stage.

    The stages of the text encoder have one learning rate for all they train; the parts of a joint
    stage have each their own. The concept stage falls linearly, as in the notebook.
    """
    concept = training.concept_stage
    if stage.name == "Concept" and concept is not None:
        return TextEncoderStage(steps=concept.steps, learning_rate=concept.learning_rate)
    if stage.name == "TextEncoder" or part == "textEncoder":
        return training.text_encoder
    return training.denoiser


def position_at(stages: tuple[Stage, ...], stage: Stage, step: int) -> Position:
    """The position after `step` updates of a stage, the earlier ones being done."""
    before = {s.name: s.steps for s in stages[: stages.index(stage)]}
    return Position(stage.name, step, before.get("TextEncoder", 0), before.get("Concept", 0))


def fits(stages: tuple[Stage, ...], position: Position) -> bool:
    """Whether training to these targets may go on from a state at `position`.

    A state past its stage's target, or one that rests on earlier stages of other targets, is of no
    use.
    """
    for stage in stages:
        if stage.name == position.name:
            return (
                0 < position.step <= stage.steps
                and position_at(stages, stage, position.step) == position
            )
    return False


def rank(position: Position) -> tuple[int, int]:
    """Sorts positions by how far they are."""
    return ORDER.index(position.name), position.step


def is_over(stage: Stage, position: Position) -> bool:
    """Whether a state at `position` holds all updates of a stage and is in a later one."""
    return ORDER.index(position.name) > ORDER.index(stage.name)


def keeps_before(stages: tuple[Stage, ...], stage: Stage, part: Part) -> bool:
    """Whether a stage before this one trained a part and kept it."""
    return any(part in earlier.keeps for earlier in stages[: stages.index(stage)])
