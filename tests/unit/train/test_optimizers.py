from typing import Any

import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.train.methods import refuse_optimizer
from kubebooth_trainer.train.optimizers import Optimizer
from torch import Tensor, nn
from transformers.optimization import Adafactor

NAMES = ("AdamW", "AdamW8bit", "Adafactor", "Prodigy")


def weights() -> dict[str, nn.Parameter]:
    """A vector, a matrix, a matrix of zeros and a convolution, one large enough for 8 bits."""
    torch.manual_seed(3)
    return {
        "denoiser.bias": nn.Parameter(torch.randn(5)),
        "denoiser.weight": nn.Parameter(torch.randn(80, 70)),
        "denoiser.up": nn.Parameter(torch.zeros(6, 4)),
        "denoiser.conv": nn.Parameter(torch.randn(3, 2, 3, 3)),
    }


def optimizer(name: str, named: dict[str, nn.Parameter]) -> Optimizer:
    made = Optimizer(Training.parse({"optimizer": name}), {"denoiser": named})
    made.set_rate("denoiser", 1.0 if name == "Prodigy" else 1e-2)
    return made


def update(made: Optimizer, named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    made.zero_grad()
    for weight in named.values():
        weight.grad = torch.randn(weight.shape, generator=generator) + weight.detach()
    made.step()


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_learns(name: str):
    named = weights()
    before = {key: weight.detach().clone() for key, weight in named.items()}
    made = optimizer(name, named)
    for step in range(3):
        update(made, named, step)
    assert all(not torch.equal(weight, before[key]) for key, weight in named.items())


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_on_bit_for_bit_from_its_saved_state(name: str, at: int):
    whole, parted = weights(), weights()
    undisturbed, first = optimizer(name, whole), optimizer(name, parted)
    for step in range(8):
        update(undisturbed, whole, step)
    for step in range(at):
        update(first, parted, step)
    saved = {key: tensor.clone() for key, tensor in first.capture().items()}
    second = optimizer(name, parted)
    second.restore(saved, step=at)
    for step in range(at, 8):
        update(second, parted, step)
    assert all(torch.equal(weight, parted[key]) for key, weight in whole.items())
    ends = undisturbed.capture(), second.capture()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_prodigy_goes_on_after_a_rate_of_zero():
    whole, parted = weights(), weights()
    undisturbed, first = optimizer("Prodigy", whole), optimizer("Prodigy", parted)
    for made, named in ((undisturbed, whole), (first, parted)):
        made.set_rate("denoiser", 0.0)
        update(made, named, 0)
        made.set_rate("denoiser", 1.0)
    second = optimizer("Prodigy", parted)
    second.restore({key: t.clone() for key, t in first.capture().items()}, step=1)
    for step in range(1, 4):
        update(undisturbed, whole, step)
        update(second, parted, step)
    assert all(torch.equal(weight, parted[key]) for key, weight in whole.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_shape_is_refused_by_name(name: str):
    named = weights()
    made = optimizer(name, named)
    update(made, named, 0)
    saved = made.capture()
    for key in sorted(key for key in saved if key.endswith("/denoiser.weight")):
        wrong = {**saved, key: torch.zeros(3, dtype=saved[key].dtype)}
        with pytest.raises(DataError, match=r"state of denoiser\.weight does not fit"):
            optimizer(name, weights()).restore(wrong, step=1)


def test_a_state_of_another_kind_of_number_is_refused():
    named = weights()
    made = optimizer("AdamW", named)
    update(made, named, 0)
    saved = made.capture()
    wrong = {**saved, "exp_avg/denoiser.bias": saved["exp_avg/denoiser.bias"].double()}
    with pytest.raises(DataError, match=r"denoiser\.bias does not fit"):
        optimizer("AdamW", weights()).restore(wrong, step=1)


def test_prodigy_misses_its_estimate():
    named = weights()
    made = optimizer("Prodigy", named)
    update(made, named, 0)
    saved = {key: t for key, t in made.capture().items() if key != "prodigy/d"}
    with pytest.raises(DataError, match="estimate d is missing"):
        optimizer("Prodigy", weights()).restore(saved, step=1)


def test_adafactor_takes_the_rate_as_it_is_set():
    named, peers = weights(), weights()
    ours = optimizer("Adafactor", named)
    theirs = Adafactor(
        peers.values(), lr=1e-2, scale_parameter=False, relative_step=False, weight_decay=0.01
    )
    for step in range(3):
        update(ours, named, step)
        for key, weight in peers.items():
            weight.grad = named[key].grad
        theirs.step()
    assert all(torch.equal(weight, peers[key]) for key, weight in named.items())


def test_eight_bits_hold_the_moments_of_large_weights_only():
    named = weights()
    made = optimizer("AdamW8bit", named)
    update(made, named, 0)
    kinds = {key: tensor.dtype for key, tensor in made.capture().items() if "state" in key}
    assert kinds["state1/denoiser.weight"] == torch.uint8
    assert kinds["state1/denoiser.bias"] == torch.float32


def test_a_weight_without_a_gradient_stays_and_has_no_state():
    named = weights()
    made = optimizer("AdamW", named)
    still = named["denoiser.conv"].detach().clone()
    named["denoiser.bias"].grad = torch.ones(5)
    made.step()
    assert torch.equal(named["denoiser.conv"], still)
    assert {key.split("/")[1] for key in made.capture()} == {"denoiser.bias"}


def steps_alone(name: str) -> dict[str, Tensor]:
    """Weights after updates that were made one weight at a time, as a fused backward does."""
    named = weights()
    made = optimizer(name, named)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for weight in named.values():
            weight.grad = torch.randn(weight.shape, generator=generator) + weight.detach()
            made.step()
            weight.grad = None
    return dict(named)


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor"])
def test_updates_may_be_fused_into_the_backward_pass(name: str):
    named = weights()
    made = optimizer(name, named)
    for step in range(3):
        update(made, named, step)
    alone = steps_alone(name)
    assert all(torch.equal(weight, alone[key]) for key, weight in named.items())


def test_without_its_library_the_8_bit_optimizer_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"AdamW8bit needs.*kubebooth\[quantized\]"):
        refuse_optimizer(Training.parse({"optimizer": "AdamW8bit"}))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"textEncoder": {"steps": 0}, "denoiser": {"learningRate": 2e-6}}, "denoiser"),
        ({"denoiser": {"learningRate": 1}, "textEncoder": {"learningRate": 1e-3}}, "textEncoder"),
    ],
)
def test_a_rate_that_prodigy_cannot_learn_with_is_warned_of(
    training: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
):
    refuse_optimizer(Training.parse({"optimizer": "Prodigy", **training}))
    assert [record.args[0] for record in caplog.records if record.args] == [said]
    caplog.clear()
    alike = {"learningRate": 1}
    refuse_optimizer(
        Training.parse({"optimizer": "Prodigy", "textEncoder": alike, "denoiser": alike})
    )
    assert not caplog.records


def test_prodigy_refuses_two_rates_in_one_stage():
    with pytest.raises(ConfigurationError, match="one learning rate for everything"):
        refuse_optimizer(
            Training.parse(
                {
                    "optimizer": "Prodigy",
                    "textEncoder": {"mode": "Joint", "learningRate": 1},
                    "denoiser": {"learningRate": 0.5},
                }
            )
        )
