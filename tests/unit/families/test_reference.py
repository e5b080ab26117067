"""Losses, gradients and pictures of the UNet families are those of diffusers' own examples.

The formulation is that of `train_dreambooth.py` and `train_dreambooth_lora_sdxl.py`, with the
library's schedulers and pipelines.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.training_utils import compute_snr
from kubebooth_trainer.families.door import Painting, Weighting
from kubebooth_trainer.train.batches import prior_loss
from torch import Tensor
from torch.nn import functional

from tests.unit.families.reference import (
    EDGE,
    GEOMETRY,
    PROMPTS,
    TIMES,
    SideBySide,
    assert_same,
    gradients,
    our_losses,
    picture,
    side_by_side,
    some,
)

GAMMA = 5.0


@pytest.fixture(scope="module", params=["sd15", "sd21-512", "sd21-768", "sdxl"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    return side_by_side(tmp_path_factory.mktemp("model") / request.param, request.param)


def their_errors(both: SideBySide, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Squared errors [n, channels, h, w] as the training examples compute them."""
    count, pipe = len(latents), both.pipe
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    noisy = scheduler.add_noise(latents, noise, times)
    extra: dict[str, Any] = {}
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    if both.variant == "sdxl":
        text, _, pooled, _ = pipe.encode_prompt(list(PROMPTS[:count]), **asked)
        ids = torch.cat(
            [
                pipe._get_add_time_ids(
                    one.original,
                    one.crop,
                    one.target,
                    dtype=text.dtype,
                    text_encoder_projection_dim=pipe.text_encoder_2.config.projection_dim,
                )
                for one in GEOMETRY[:count]
            ]
        )
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    else:
        text, _ = pipe.encode_prompt(list(PROMPTS[:count]), **asked)
    said = pipe.unet(noisy, times, text, return_dict=False, **extra)[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, times) if velocity else noise
    return functional.mse_loss(said.float(), target.float(), reduction="none")


def their_min_snr_weights(both: SideBySide, times: Tensor) -> Tensor:
    scheduler = DDPMScheduler.from_config(both.pipe.scheduler.config)
    snr = compute_snr(scheduler, times)
    clipped = torch.stack([snr, GAMMA * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    return clipped / (snr + 1) if velocity else clipped / snr


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return some(count, 4, 8, 8), some(count, 4, 8, 8, seed=1), torch.tensor(TIMES[:count])


def assert_same_training(both: SideBySide, ours: Tensor, theirs: Tensor) -> None:
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    for part, module in (("denoiser", both.denoiser), ("textEncoder", both.text_encoder)):
        assert_same(gradients(ours, both.model.parts[part]), gradients(theirs, module))


def test_losses_and_gradients_are_those_of_the_training_examples(both: SideBySide):
    latents, noise, times = batch(4)
    ours = our_losses(both, latents, noise, times)
    theirs = their_errors(both, latents, noise, times).mean(dim=(1, 2, 3))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert_same_training(both, ours.mean(), theirs.mean())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_prior_preservation_with_and_without_min_snr_at_every_batch_size(
    both: SideBySide, size: int, gamma: float | None
):
    latents, noise, times = batch(2 * size)
    ours = our_losses(both, latents, noise, times, weighting=Weighting(min_snr_gamma=gamma))
    errors = their_errors(both, latents, noise, times).mean(dim=(1, 2, 3))
    weights = torch.ones(2 * size) if gamma is None else their_min_snr_weights(both, times)
    instance, prior = torch.chunk(errors, 2)
    own, others = torch.chunk(weights, 2)
    theirs = (instance * own).mean() + 0.5 * (prior * others).mean()
    assert_same_training(both, prior_loss(ours, instances=size, weight=0.5), theirs)


def test_latents_are_those_of_the_vae(both: SideBySide):
    image = picture()
    ours = both.model.encode_picture(image)
    pixels = both.pipe.image_processor.preprocess(image)
    with torch.no_grad():
        theirs = both.pipe.vae.encode(pixels).latent_dist
    assert torch.allclose(ours.mean, theirs.mean[0], atol=1e-5)
    assert torch.allclose(ours.std, theirs.std[0], rtol=1e-4)
    noise = some(*ours.mean.shape)
    scaled = (theirs.mean[0] + theirs.std[0] * noise) * both.pipe.vae.config.scaling_factor
    assert torch.allclose(both.model.latents(ours, noise), scaled, atol=1e-5)


@pytest.mark.parametrize("negative", ["", "a cat"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pictures_are_those_of_the_pipeline_with_the_same_solver(
    both: SideBySide, negative: str, guidance: float
):
    noise = some(2, 4, EDGE // 8, EDGE // 8, seed=3)
    asked = [Painting(prompt, negative, one) for prompt, one in zip(PROMPTS, noise, strict=False)]
    ours = both.model.paint(asked, inference_steps=6, guidance_scale=guidance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        both.pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            both.pipe.scheduler.config, timestep_spacing="linspace"
        )
        theirs = both.pipe(
            list(PROMPTS[:2]),
            negative_prompt=[negative] * 2 if negative else None,
            latents=noise,
            height=EDGE,
            width=EDGE,
            num_inference_steps=6,
            guidance_scale=guidance,
            output_type="np",
        ).images
    for one, other in zip(ours, theirs, strict=True):
        difference = np.abs(np.asarray(one, dtype=np.float32) - other * 255)
        assert difference.max() < 0.51
        assert np.asarray(one).std() > 1


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    """A base that predicts v, on a schedule that ends in pure noise."""
    folder = tmp_path_factory.mktemp("zero") / "model"
    return side_by_side(folder, "sd21-768", zero_terminal_snr=True)


@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_zero_terminal_snr_is_that_of_diffusers(zero: SideBySide, gamma: float | None):
    latents, noise, times = batch(4)
    zero.pipe.scheduler = DDPMScheduler.from_config(
        zero.pipe.scheduler.config, rescale_betas_zero_snr=True
    )
    ours = our_losses(zero, latents, noise, times, weighting=Weighting(min_snr_gamma=gamma))
    theirs = their_errors(zero, latents, noise, times).mean(dim=(1, 2, 3))
    if gamma is not None:
        theirs = theirs * their_min_snr_weights(zero, times)
        assert ours[TIMES.index(999)] == 0
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for part, module in (("denoiser", zero.denoiser), ("textEncoder", zero.text_encoder)):
        own = gradients(ours.mean(), zero.model.parts[part])
        assert_same(own, gradients(theirs.mean(), module), share=2e-4)


def test_pictures_start_from_pure_noise_under_zero_terminal_snr(zero: SideBySide):
    noise = some(1, 4, EDGE // 8, EDGE // 8, seed=3)
    asked = [Painting(PROMPTS[0], "", noise[0])]
    (ours,) = zero.model.paint(asked, inference_steps=6, guidance_scale=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        zero.pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            zero.pipe.scheduler.config, timestep_spacing="linspace", rescale_betas_zero_snr=True
        )
        theirs = zero.pipe(
            PROMPTS[0],
            latents=noise,
            height=EDGE,
            width=EDGE,
            num_inference_steps=6,
            guidance_scale=5.0,
            output_type="np",
        ).images[0]
    assert np.abs(np.asarray(ours, dtype=np.float32) - theirs * 255).max() < 0.51
