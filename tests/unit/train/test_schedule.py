import math
from typing import Literal, get_args

import pytest
import torch
from diffusers.optimization import get_scheduler
from kubebooth_api.v1alpha1.training import LrScheduler
from kubebooth_trainer.train.schedule import RESTARTS, learning_rate

NAMES = {
    "Linear": "linear",
    "Cosine": "cosine",
    "CosineWithRestarts": "cosine_with_restarts",
    "Polynomial": "polynomial",
    "ConstantWithWarmup": "constant_with_warmup",
}
PEAK, STEPS = 2e-4, 40


def of_diffusers(name: str, *, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=STEPS,
        num_cycles=RESTARTS,
        power=1.0,
    )
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_closed_form_equals_the_scheduler_the_notebook_used(
    name: Literal["Linear"], warmup: int
):
    ours = [
        learning_rate(name, peak=PEAK, step=step, steps=STEPS, warmup_steps=warmup)
        for step in range(STEPS)
    ]
    theirs = of_diffusers(NAMES[name], warmup=warmup)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-18)


def test_constant_stays_at_its_peak_and_honours_a_warm_up():
    rates = [learning_rate("Constant", peak=1.0, step=s, steps=9, warmup_steps=4) for s in range(9)]
    assert rates == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", get_args(LrScheduler))
def test_every_rate_is_finite_even_when_warm_up_takes_all_steps(name: Literal["Linear"]):
    for step in range(8):
        rate = learning_rate(name, peak=1.0, step=step, steps=8, warmup_steps=8)
        assert math.isfinite(rate)
        assert 0 <= rate <= 1
