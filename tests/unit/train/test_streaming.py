"""Layers that borrow their weights: the same bits, and never the whole network at once."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.families.door import Geometry, Model, Placement, Weighting
from kubebooth_trainer.train.lora import LowRank
from kubebooth_trainer.train.memory_streaming import stream
from kubebooth_trainer.train.refusals import FAMILIES
from torch import Tensor

from tests.tiny.models import write_model

CPU = torch.device("cpu")


class Counter:
    """Copies weights as a move to an accelerator would, and counts the copies that live."""

    def __init__(self) -> None:
        self.present = self.most = 0

    def __call__(self, weight: Tensor) -> Tensor:
        copy = weight.clone()
        self.present += copy.nbytes
        self.most = max(self.most, self.present)
        weakref.finalize(copy, self._gone, copy.nbytes)
        return copy

    def _gone(self, size: int) -> None:
        self.present -= size


def gradients(model: Model, channels: int, times: Tensor) -> dict[str, Tensor]:
    noise = torch.randn((1, channels, 8, 8), generator=torch.Generator().manual_seed(1))
    edge = (64, 64)
    with torch.no_grad():
        known = model.embed(["a sks dog"])
    module = model.parts["denoiser"]
    module.zero_grad(set_to_none=True)
    losses = model.losses(
        torch.flip(noise, (3,)),
        noise=noise,
        timesteps=times,
        conditioning=known,
        geometry=[Geometry(original=edge, crop=(0, 0), target=edge)],
        weighting=Weighting(),
    )
    losses.sum().backward()
    return {n: w.grad.clone() for n, w in module.named_parameters() if w.grad is not None}


@pytest.mark.parametrize(
    ("variant", "channels", "times"),
    [("sdxl", 4, torch.tensor([500])), ("flux-dev", 16, torch.tensor([0.5]))],
)
@pytest.mark.parametrize("low_rank", [False, True])
def test_streamed_weights_give_the_same_gradients_and_are_never_all_there(
    tmp_path: Path, variant: str, channels: int, times: Tensor, low_rank: bool
):
    base = write_model(tmp_path / "base", variant)
    family = {"sdxl": "sdxl", "flux-dev": "flux"}[variant]

    def opened() -> Any:
        model = FAMILIES[family](
            base,
            placement=Placement(CPU, None, waiting=CPU),
            zero_terminal_snr=False,
            trained=frozenset({"denoiser"}),
        )
        if low_rank:
            LowRank(model, ["denoiser"], training=Training.parse({"method": "LoRA"})).learn(
                ["denoiser"]
            )
        else:
            model.parts["denoiser"].requires_grad_(True).train()
        return model

    plain, streamed, counter = opened(), opened(), Counter()
    exact = gradients(plain, channels, times)
    streamed.save_memory(True)
    module = streamed.parts["denoiser"]
    assert stream(module, device=CPU, borrow=counter) > 0
    assert stream(module, device=CPU, borrow=counter) == 0
    found = gradients(streamed, channels, times)
    assert found.keys() == exact.keys()
    assert all(torch.equal(found[name], g) for name, g in exact.items())
    assert counter.present == 0
    whole = sum(weight.nbytes for weight in module.parameters())
    assert 0 < counter.most < 0.8 * whole
    # Weights are the network's own again: they are saved and updated where they wait.
    assert all(isinstance(w, torch.nn.Parameter) for w in module.parameters())
    assert module.state_dict().keys() == plain.parts["denoiser"].state_dict().keys()
