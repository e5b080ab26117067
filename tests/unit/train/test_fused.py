"""Updates within the backward pass: the same bits, with the gradient of one weight at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Geometry, Model, Placement, Weighting
from kubebooth_trainer.train.refusals import FAMILIES
from kubebooth_trainer.train.stages import plan_stages
from kubebooth_trainer.train.updates import Updates
from kubebooth_trainer.train.weights import OwnWeights
from torch import Tensor

from tests.tiny.models import write_model

CPU = Placement(torch.device("cpu"), None)
TIMES = {"sdxl": torch.tensor([500]), "flux-dev": torch.tensor([0.5])}
CHANNELS = {"sdxl": 4, "flux-dev": 16}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {variant: write_model(folder / variant, variant) for variant in TIMES}


class Learner:
    """A tiny model at work on both of its parts."""

    def __init__(self, base: Path, variant: str, *, fused: bool, **training: Any) -> None:
        family = {"sdxl": "sdxl", "flux-dev": "flux"}[variant]
        self.model: Model = FAMILIES[family](
            base,
            placement=CPU,
            zero_terminal_snr=False,
            trained=frozenset({"denoiser", "textEncoder"}),
        )
        self.variant, self.fused = variant, fused
        self.training = Training.parse(
            {
                "textEncoder": {"mode": "Joint", "steps": 8, "learningRate": 1e-3},
                "denoiser": {"steps": 8, "learningRate": 1e-3},
                "weightDecay": 0.1,
                **training,
            }
        )
        self.stage = plan_stages(self.training)[0]
        assert self.stage.parts == ("textEncoder", "denoiser")
        self.updates = self.anew()

    def anew(self) -> Updates:
        self.model.save_memory(True)
        return Updates(
            OwnWeights(self.model),
            self.stage,
            training=self.training,
            placement=CPU,
            fused=self.fused,
        )

    def backward(self, step: int, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn((1, CHANNELS[self.variant], 8, 8), generator=generator)
        losses = self.model.losses(
            torch.flip(noise, (3,)),
            noise=noise,
            timesteps=TIMES[self.variant],
            conditioning=self.model.embed(["a sks dog"]),
            geometry=[Geometry(original=(64, 64), crop=(0, 0), target=(64, 64))],
            weighting=Weighting(),
        )
        loss = losses.sum()
        (loss * scale).backward()
        return loss.detach()

    def learn(self, first: int, last: int) -> list[float]:
        return [
            self.updates.apply(step, lambda scale, step=step: self.backward(step, scale))[0]
            for step in range(first, last)
        ]

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        own = OwnWeights(self.model)
        return own.of("textEncoder") | own.of("denoiser")

    def everything(self) -> dict[str, Tensor]:
        return {**self.weights, **self.updates.capture()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in one.items())


@pytest.mark.parametrize("most", [1e3, 0.01], ids=["free", "clipped"])
@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Adafactor"])
def test_weights_and_state_are_those_of_updates_at_once(
    bases: dict[str, Path], optimizer: str, most: float
):
    asked = {"optimizer": optimizer, "maxGradNorm": most}
    plain = Learner(bases["sdxl"], "sdxl", fused=False, **asked)
    fused = Learner(bases["sdxl"], "sdxl", fused=True, **asked)
    before = {name: weight.detach().clone() for name, weight in fused.weights.items()}
    assert fused.learn(0, 3) == plain.learn(0, 3)
    assert equal(fused.everything(), plain.everything())
    moved = sum(not torch.equal(weight, before[name]) for name, weight in fused.weights.items())
    assert moved > 0.8 * len(before)


def test_flux_and_the_average_too_are_those_of_updates_at_once(bases: dict[str, Path]):
    asked = {"maxGradNorm": 0.01, "ema": {"decay": 0.9}}
    plain = Learner(bases["flux-dev"], "flux-dev", fused=False, **asked)
    fused = Learner(bases["flux-dev"], "flux-dev", fused=True, **asked)
    assert fused.learn(0, 2) == plain.learn(0, 2)
    assert equal(fused.everything(), plain.everything())


@pytest.mark.parametrize("variant", sorted(TIMES))
def test_there_is_never_more_than_the_gradient_of_one_weight(bases: dict[str, Path], variant: str):
    def most_living(*, fused: bool) -> tuple[int, int]:
        learner = Learner(bases[variant], variant, fused=fused)
        weights, counts = list(learner.weights.values()), []

        def count(_: Tensor) -> None:
            counts.append(sum(weight.grad is not None for weight in weights))

        # These hooks come before those that free the gradient.
        for weight in weights:
            weight.register_post_accumulate_grad_hook(count)
        learner.updates = learner.anew()
        learner.learn(0, 1)
        assert all(weight.grad is None for weight in weights)
        return max(counts), len(counts)

    most, seen = most_living(fused=True)
    all_at_once, once = most_living(fused=False)
    assert most == 1
    assert all_at_once == once > 50
    assert seen == 2 * once  # one pass measures, one updates


def test_a_restored_state_goes_on_bit_for_bit(bases: dict[str, Path]):
    whole = Learner(bases["sdxl"], "sdxl", fused=True)
    whole.learn(0, 4)
    parted = Learner(bases["sdxl"], "sdxl", fused=True)
    parted.learn(0, 2)
    saved = {key: tensor.clone() for key, tensor in parted.updates.capture().items()}
    facts = parted.updates.facts
    parted.updates = parted.anew()
    parted.updates.restore(saved, facts, step=2)
    parted.learn(2, 4)
    assert equal(whole.everything(), parted.everything())


def test_a_gradient_that_is_not_finite_stops_before_any_weight_changed(bases: dict[str, Path]):
    learner = Learner(bases["sdxl"], "sdxl", fused=True)
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    first = next(iter(learner.model.parts["denoiser"].parameters()))
    # The first layer's gradient is the last to come: all others have been seen by then.
    spoilt = first.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(ConfigurationError, match="gradients are not finite"):
        learner.learn(0, 1)
    assert equal(dict(learner.weights), before)
    assert all(weight.grad is None for weight in learner.weights.values())
    spoilt.remove()
    assert learner.learn(0, 1) == Learner(bases["sdxl"], "sdxl", fused=False).learn(0, 1)


def test_a_loss_that_is_not_finite_stops_before_any_weight_changed(bases: dict[str, Path]):
    learner = Learner(bases["sdxl"], "sdxl", fused=True)
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}

    def exploded(scale: float) -> Tensor:
        return learner.backward(0, scale) * float("inf")

    with pytest.raises(ConfigurationError, match="loss became inf"):
        learner.updates.apply(0, exploded)
    assert equal(dict(learner.weights), before)
