"""Which stages a training has, which parts of the model each trains, and which states fit it.

Pure: it must not know tensors, stores or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kubebooth_api.v1alpha1.training import DenoiserStage, TextEncoderStage, Training

StageName = Literal["TextEncoder", "Denoiser"]
Part = Literal["textEncoder", "denoiser"]
ORDER: tuple[StageName, ...] = ("TextEncoder", "Denoiser")


@dataclass(frozen=True)
class Stage:
    """One stage: `steps` updates of `parts`, of which `keeps` survive its end."""

    name: StageName
    steps: int
    parts: tuple[Part, ...]
    keeps: tuple[Part, ...]


@dataclass(frozen=True)
class Position:
    """Updates that a state holds: `step` of stage `name`, after `text_steps` of the first stage."""

    name: StageName
    step: int
    text_steps: int


def plan_stages(training: Training) -> tuple[Stage, ...]:
    """The stages in order; one with a target of 0 steps is left out.

    `JointDiscard` trains both parts in the first stage and keeps the text encoder only. `Joint`
    trains both in one stage of `denoiser.steps`.
    """
    text, denoiser = training.text_encoder, training.denoiser
    if text.mode == "Joint" and text.steps > 0:
        both: tuple[Part, ...] = ("textEncoder", "denoiser")
        return (Stage("Denoiser", denoiser.steps, both, both),)
    stages: list[Stage] = []
    if text.steps > 0:
        parts: tuple[Part, ...] = (
            ("textEncoder", "denoiser") if text.mode == "JointDiscard" else ("textEncoder",)
        )
        stages.append(Stage("TextEncoder", text.steps, parts, ("textEncoder",)))
    if denoiser.steps > 0:
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

    The text encoder stage has one learning rate for all it trains; the parts of a joint stage have
    each their own.
    """
    if stage.name == "TextEncoder" or part == "textEncoder":
        return training.text_encoder
    return training.denoiser


def text_steps_before(stages: tuple[Stage, ...], stage: Stage) -> int:
    """Updates of the text encoder stage that a state of `stage` rests on; 0 inside that stage."""
    if stage.name == "TextEncoder":
        return 0
    return sum(s.steps for s in stages if s.name == "TextEncoder")


def fits(stages: tuple[Stage, ...], position: Position) -> bool:
    """Whether training to these targets may go on from a state at `position`.

    A state past its stage's target, or of a denoiser that learned on a text encoder of other
    targets, is of no use.
    """
    for stage in stages:
        if stage.name == position.name:
            return (
                0 < position.step <= stage.steps
                and text_steps_before(stages, stage) == position.text_steps
            )
    return False


def rank(position: Position) -> tuple[int, int]:
    """Sorts positions by how far they are."""
    return ORDER.index(position.name), position.step
