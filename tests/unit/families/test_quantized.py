"""Flux on a quantized base: small, nearly the same, with gradients for what lies before it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Geometry, Placement, Weighting
from kubebooth_trainer.families.flux import load
from kubebooth_trainer.train.lora import LowRank

from tests.tiny.models import write_model

EDGE = (64, 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "flux", "flux-dev")


def opened(base: Path, form: Any) -> Any:
    placement = Placement(torch.device("cpu"), None, quantized=form)
    return load(base, placement=placement, zero_terminal_snr=False, trained=frozenset())


def losses(model: Any) -> torch.Tensor:
    noise = torch.randn((2, 16, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        known = model.embed(["a sks dog", "a dog"])
    found: torch.Tensor = model.losses(
        torch.flip(noise, (3,)),
        noise=noise,
        timesteps=torch.tensor([0.3, 0.8]),
        conditioning=known,
        geometry=[Geometry(original=EDGE, crop=(0, 0), target=EDGE)] * 2,
        weighting=Weighting(),
    )
    return found


@pytest.mark.parametrize(("form", "share", "near"), [("Int8", 0.45, 1e-2), ("Nf4", 0.35, 0.1)])
def test_a_quantized_base_is_smaller_and_says_nearly_the_same(
    base: Path, form: str, share: float, near: float
):
    plain, small = opened(base, "None"), opened(base, form)
    exact, found = losses(plain), losses(small)
    assert not torch.equal(exact, found)
    assert torch.allclose(exact, found, rtol=near)
    weights = [
        sum(w.nbytes for name, w in model.parts["denoiser"].named_parameters() if "blocks" in name)
        for model in (plain, small)
    ]
    assert weights[1] < share * weights[0]


@pytest.mark.parametrize("form", ["Int8", "Nf4"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_low_rank_update_learns_through_a_quantized_base(base: Path, form: str, recompute: bool):
    model = opened(base, form)
    update = LowRank(model, ["denoiser"], training=Training.parse({"method": "LoRA"}))
    update.learn(["denoiser"])
    model.save_memory(recompute)
    named = update.of("denoiser")
    first = float(losses(model).mean().detach())
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        losses(model).mean().backward()
        assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in named.values())
        optimizer.step()
    assert float(losses(model).mean().detach()) < first
    model.reset("denoiser")


def test_fp8_is_refused(base: Path):
    with pytest.raises(ConfigurationError, match="Fp8 is not in this version; use Int8 or Nf4"):
        opened(base, "Fp8")
