"""Weights are kept in the precision asked for, the VAE always in float32."""

from typing import Any

import pytest
import torch
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Painting, Part, Placement
from torch import nn

from tests.unit.families.reference import (
    CPU,
    EDGE,
    PROMPTS,
    SideBySide,
    gradients,
    opened,
    our_losses,
    picture,
    side_by_side,
    some,
)

BRAIN = torch.bfloat16
HALF_FROZEN = Placement(torch.device("cpu"), BRAIN, frozen=BRAIN)


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters()}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    return side_by_side(tmp_path_factory.mktemp("model") / request.param, request.param)


def again(plain: SideBySide, **load: Any) -> SideBySide:
    return opened(plain.folder, plain.variant, **load)


@pytest.mark.parametrize("trained", ["textEncoder", "denoiser"])
def test_what_is_not_trained_is_kept_in_the_frozen_precision(plain: SideBySide, trained: Part):
    model: Any = again(plain, placement=HALF_FROZEN, trained=frozenset({trained})).model
    frozen: Part = "denoiser" if trained == "textEncoder" else "textEncoder"
    assert dtypes(model.parts[trained]) == {torch.float32}
    assert dtypes(model.parts[frozen]) == {BRAIN}
    assert dtypes(model._vae) == {torch.float32}
    assert model.encode_picture(picture()).mean.dtype == torch.float32


@pytest.mark.parametrize(
    "placement",
    [HALF_FROZEN, Placement(torch.device("cpu"), None, frozen=BRAIN), Placement(CPU.device, BRAIN)],
)
def test_half_precision_gives_nearly_the_same_loss_and_float_gradients(
    plain: SideBySide, placement: Placement
):
    latents, noise, times = some(3, 4, 8, 8), some(3, 4, 8, 8, seed=1), torch.tensor([1, 500, 999])
    exact = our_losses(plain, latents, noise, times)
    both = again(plain, placement=placement, trained=frozenset({"textEncoder"}))
    losses = our_losses(both, latents, noise, times)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, exact, rtol=0.05)
    found = gradients(losses.mean(), both.model.parts["textEncoder"])
    assert found
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found.values())


def test_a_model_in_half_precision_paints_and_starts_over(plain: SideBySide):
    model = again(plain, placement=HALF_FROZEN, trained=frozenset()).model
    asked = [Painting("a dog", "", some(4, EDGE // 8, EDGE // 8))]
    (before,) = model.paint(asked, inference_steps=2, guidance_scale=4.0)
    with torch.no_grad():
        for module in model.parts.values():
            for weight in module.parameters():
                weight.mul_(1.5)
    assert model.paint(asked, inference_steps=2, guidance_scale=4.0)[0].tobytes() != (
        before.tobytes()
    )
    for part in model.parts:
        model.reset(part)
    (after,) = model.paint(asked, inference_steps=2, guidance_scale=4.0)
    assert after.tobytes() == before.tobytes()


def test_a_quantized_base_is_refused_where_a_family_has_none(plain: SideBySide):
    quantized = Placement(torch.device("cpu"), None, quantized="Int8")
    with pytest.raises(ConfigurationError, match=r"training\.memory\.quantizedBase Int8"):
        again(plain, placement=quantized)


def test_gradient_checkpointing_changes_no_gradient(plain: SideBySide):
    latents, noise, times = some(2, 4, 8, 8), some(2, 4, 8, 8, seed=1), torch.tensor([5, 900])
    exact = gradients(
        our_losses(plain, latents, noise, times).mean(), plain.model.parts["denoiser"]
    )
    plain.model.save_memory(True)
    again_ = our_losses(plain, latents, noise, times).mean()
    found = gradients(again_, plain.model.parts["denoiser"])
    plain.model.save_memory(False)
    assert all(torch.equal(found[name], g) for name, g in exact.items())


def test_released_components_come_back_with_their_bits(plain: SideBySide):
    model: Any = again(plain).model
    held = [model._vae, *([model._texts.second] if plain.variant == "sdxl" else [])]
    before = model.encode_picture(picture()), model.embed(PROMPTS)
    asked = [Painting("a dog", "", some(4, EDGE // 8, EDGE // 8))]
    painted = model.paint(asked, inference_steps=2, guidance_scale=4.0)
    model.release()
    assert not any(one.is_here for one in held)
    assert model.latent_shape((EDGE, EDGE)) == (4, 8, 8)
    assert not model._vae.is_here
    after = model.encode_picture(picture()), model.embed(PROMPTS)
    assert torch.equal(before[0].mean, after[0].mean)
    assert all(torch.equal(before[1][name], t) for name, t in after[1].items())
    model.release()
    assert model.paint(asked, inference_steps=2, guidance_scale=4.0)[0].tobytes() == (
        painted[0].tobytes()
    )
    assert all(one.is_here for one in held)
