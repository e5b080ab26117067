"""What the losses of a run suggest, in plain words; nothing when there is nothing to say.

Pure: it knows numbers and settings, not models or stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubebooth_api.v1alpha1.training import Training

from kubebooth_trainer.train.record import Point

LEAST_AFTER = 3
"""Measurements after the lowest one before a rise is believed."""
RISE, FALL = 0.02, 0.01
"""Relative changes of the validation loss that count."""
LEAST_POINTS = 40
"""Training losses without which nothing is said of their course: they jump with the noise."""
EXPLOSION = 2.0
MOST_PASSES = 500
"""Times that one picture may be seen before it is worth saying that nobody measures."""
MOST_HINTS, MOST_CHARACTERS = 4, 256


@dataclass(frozen=True)
class Course:
    """What is known of a run."""

    losses: Sequence[Point]
    validations: Sequence[Point]
    pictures: int
    """Pictures that were trained on."""
    kept_steps: Sequence[int] = ()
    """Updates of the denoiser of which a checkpoint is kept."""


def hints(course: Course, training: Training) -> tuple[str, ...]:
    """At most four pieces of advice, the most important first."""
    told = [*_explosion(course), *_validation(course, training), *_unseen(course, training)]
    return tuple(hint[:MOST_CHARACTERS] for hint in told[:MOST_HINTS])


def _explosion(course: Course) -> Iterator[str]:
    for stage, field in (("TextEncoder", "textEncoder"), ("Denoiser", "denoiser")):
        losses = [point.loss for point in course.losses if point.stage == stage]
        if len(losses) < LEAST_POINTS:
            continue
        part = len(losses) // 5
        first, last = _mean(losses[:part]), _mean(losses[-part:])
        if last > EXPLOSION * first:
            yield (
                f"The training loss of {stage} rose from {first:.3g} to {last:.3g}: the learning"
                f" rate is too high; lower training.{field}.learningRate to a third."
            )


def _validation(course: Course, training: Training) -> Iterator[str]:
    measured = course.validations
    if len(measured) < 2:
        return
    lowest = min(range(len(measured)), key=lambda place: (measured[place].loss, place))
    best, after = measured[lowest], measured[lowest + 1 :]
    if len(after) >= LEAST_AFTER:
        newest = [point.loss for point in after[-LEAST_AFTER:]]
        if min(newest) > best.loss * (1 + RISE):
            yield from _overfitted(best, _mean(newest), measured[-1].step, course, training)
        return
    if not after and len(measured) > LEAST_AFTER:
        earlier = min(point.loss for point in measured[:-LEAST_AFTER])
        if best.loss < earlier * (1 - FALL):
            yield (
                f"The validation loss was still falling at step {best.step}: raise"
                " training.denoiser.steps, and training goes on from there."
            )


def _overfitted(
    best: Point, now: float, last: int, course: Course, training: Training
) -> Iterator[str]:
    kept = best.step in course.kept_steps
    where = (
        f"use the checkpoint of step {best.step}"
        if kept
        else f"set training.denoiser.steps: {best.step} and start anew with rerun"
    )
    yield (
        f"The validation loss rose by {now / best.loss - 1:.0%} since step {best.step}, its lowest"
        f" ({best.loss:.4f}): the model repeats its pictures; {where}."
    )
    if training.prior_preservation is None:
        yield (
            "There is no prior preservation: training.priorPreservation with a class prompt slows"
            " overfitting and keeps the class as it was."
        )
    elif best.step < last / 3:
        yield (
            f"The lowest validation loss came as early as step {best.step} of {last}: lower"
            " training.denoiser.learningRate, or give more pictures."
        )


def _unseen(course: Course, training: Training) -> Iterator[str]:
    if course.validations or not course.pictures or training.validation is not None:
        return
    updates = sum(
        max((point.step for point in course.losses if point.stage == stage), default=0)
        for stage in ("Denoiser",)
    )
    passes = updates * training.batch_size * training.gradient_accumulation // course.pictures
    if passes > MOST_PASSES:
        yield (
            f"Each picture was seen {passes} times and nothing measures overfitting: set"
            " training.validation, or fewer training.denoiser.steps."
        )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
