import math
import random
from typing import Any

import pytest
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.train.hints import MOST_CHARACTERS, MOST_HINTS, Course, hints
from kubebooth_trainer.train.record import Point


def noisy(steps: int, *, level: float = 0.1, stage: str = "Denoiser") -> list[Point]:
    dice = random.Random(1)
    return [Point(stage, n + 1, level * (0.4 + 1.2 * dice.random()), 1e-6) for n in range(steps)]


def measured(*losses: float, every: int = 100) -> list[Point]:
    return [Point("Denoiser", (n + 1) * every, loss, 1e-6) for n, loss in enumerate(losses)]


def told(
    losses: list[Point],
    validations: list[Point] | None = None,
    *,
    pictures: int = 10,
    kept: tuple[int, ...] = (),
    **training: Any,
) -> tuple[str, ...]:
    course = Course(losses, validations or [], pictures=pictures, kept_steps=kept)
    return hints(course, Training.parse({"validation": {} if validations else None, **training}))


PRIOR = {"priorPreservation": {"classPrompt": "a dog"}}


def test_a_validation_loss_that_rose_names_the_step_before_and_the_cures():
    found = told(noisy(900), measured(0.2, 0.16, 0.15, 0.151, 0.157, 0.16, 0.162, 0.165, 0.17))
    assert "rose by 10% since step 300" in found[0]
    assert "training.denoiser.steps: 300" in found[0]
    assert "training.priorPreservation" in found[1]


def test_a_kept_checkpoint_of_the_best_step_is_recommended():
    curve = measured(0.2, 0.15, 0.16, 0.17, 0.18)
    assert "use the checkpoint of step 200" in told(noisy(500), curve, kept=(200,), **PRIOR)[0]
    assert "start anew" in told(noisy(500), curve, kept=(400,), **PRIOR)[0]


def test_a_very_early_turn_asks_for_a_lower_learning_rate_or_more_pictures():
    found = told(noisy(1000), measured(0.1, *[0.12 + n / 100 for n in range(9)]), **PRIOR)
    assert "as early as step 100 of 1000" in found[1]
    assert "training.denoiser.learningRate" in found[1]


def test_a_validation_loss_that_still_falls_asks_for_more_steps():
    (only,) = told(noisy(600), measured(*[0.2 * math.exp(-n / 5) for n in range(6)]))
    assert "still falling at step 600" in only


@pytest.mark.parametrize(
    "curve",
    [
        measured(0.2, 0.15, 0.14, 0.1399, 0.1401, 0.14),
        measured(0.2, 0.15, 0.16),
        measured(0.1),
        measured(0.1, 0.1, 0.1, 0.1, 0.1),
        measured(0.2, 0.15, 0.16, 0.15, 0.151),
        [],
    ],
)
def test_nothing_is_said_when_there_is_nothing_to_say(curve: list[Point]):
    assert told(noisy(600), curve) == ()


@pytest.mark.parametrize("stage", ["TextEncoder", "Denoiser"])
def test_a_loss_that_explodes_names_the_learning_rate_of_its_stage(stage: str):
    losses = [Point(stage, n + 1, 0.1 * math.exp(max(0, n - 100) / 40), 1e-3) for n in range(200)]
    (only,) = told(losses)
    field = "textEncoder" if stage == "TextEncoder" else "denoiser"
    assert f"training.{field}.learningRate" in only
    assert stage in only


def test_many_passes_that_nobody_measures_are_pointed_out():
    (only,) = told(noisy(2000), pictures=3)
    assert "seen 666 times" in only
    assert told(noisy(2000), pictures=3, batchSize=1, validation={}) == ()
    assert told(noisy(1500), pictures=10) == ()


def test_hints_fit_into_a_report():
    losses = [Point("Denoiser", n + 1, math.exp(n), 1.0) for n in range(300)]
    losses += [Point("TextEncoder", n + 1, math.exp(n), 1.0) for n in range(300)]
    found = told(losses, measured(1e-30, *[1e300 * n for n in range(1, 30)]))
    assert 0 < len(found) <= MOST_HINTS
    assert all(len(hint) <= MOST_CHARACTERS for hint in found)
