import warnings

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import diffusion, solver
from kubebooth_trainer.train.batches import prior_loss

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
PRODUCTS = diffusion.alphas_cumprod(CONFIG)


def peer(prediction: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(**CONFIG, prediction_type=prediction)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_noise_schedule_is_that_of_diffusers(schedule: str):
    config = {**CONFIG, "beta_schedule": schedule}
    assert torch.equal(diffusion.alphas_cumprod(config), DDPMScheduler(**config).alphas_cumprod)


def test_zero_terminal_snr_is_that_of_the_paper():
    ours = diffusion.alphas_cumprod(CONFIG, zero_terminal_snr=True)
    betas = rescale_zero_terminal_snr(peer().betas)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(PRODUCTS[0].item(), rel=1e-6)
    assert torch.allclose(ours, torch.cumprod(1 - betas, 0), atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_and_targets_equal_those_of_diffusers(prediction: str):
    latents, noise = some(3, 4, 8, 8), some(3, 4, 8, 8, seed=1)
    times = torch.tensor([0, 500, 999])
    products = PRODUCTS[times]
    noisy = diffusion.add_noise(latents, noise, products)
    assert torch.allclose(noisy, peer().add_noise(latents, noise, times), atol=1e-6)
    wanted = noise if prediction == "epsilon" else peer().get_velocity(latents, noise, times)
    assert torch.allclose(diffusion.target(prediction, latents, noise, products), wanted, atol=1e-6)


def test_min_snr_weights_are_the_closed_forms():
    snr = PRODUCTS / (1 - PRODUCTS)
    clipped = snr.clamp(max=5)
    epsilon = diffusion.min_snr_weights("epsilon", PRODUCTS, gamma=5)
    velocity = diffusion.min_snr_weights("v_prediction", PRODUCTS, gamma=5)
    assert torch.allclose(epsilon, clipped / snr, rtol=1e-4)
    assert torch.allclose(velocity, clipped / (snr + 1), rtol=1e-4)


def test_min_snr_of_v_prediction_is_defined_at_pure_noise():
    products = diffusion.alphas_cumprod(CONFIG, zero_terminal_snr=True)
    weights = diffusion.min_snr_weights("v_prediction", products, gamma=5)
    assert torch.isfinite(weights).all()
    assert weights[-1] == 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_prior_loss_with_min_snr_weighs_each_sample_by_its_own_timestep(size: int):
    said, wanted = some(2 * size, 4, 8, 8), some(2 * size, 4, 8, 8, seed=1)
    times = torch.arange(2 * size) * 150
    weights = diffusion.min_snr_weights("epsilon", PRODUCTS[times], gamma=5)
    losses = diffusion.losses(said, wanted, weights)
    by_hand = [
        torch.nn.functional.mse_loss(said[i], wanted[i]).item() * weights[i].item()
        for i in range(2 * size)
    ]
    expected = sum(by_hand[:size]) / size + 0.7 * sum(by_hand[size:]) / size
    assert prior_loss(losses, instances=size, weight=0.7).item() == pytest.approx(expected, 1e-5)


def test_without_class_images_the_loss_is_the_plain_mean():
    losses = torch.tensor([1.0, 3.0])
    assert prior_loss(losses, instances=2, weight=9.0).item() == 2.0


@pytest.mark.parametrize("wrong", [{"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [1]}])
def test_an_unknown_noise_schedule_is_refused_by_file(wrong: dict[str, object]):
    with pytest.raises(DataError, match=r"scheduler_config\.json"):
        diffusion.alphas_cumprod({**CONFIG, **wrong})


def test_zero_terminal_snr_without_v_prediction_is_refused_by_field():
    with pytest.raises(ConfigurationError, match=r"training\.zeroTerminalSnr"):
        diffusion.prediction_of(CONFIG, zero_terminal_snr=True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 8, 25])
def test_the_sampler_walks_the_path_of_diffusers(prediction: str, steps: int):
    start = some(2, 4, 8, 8)
    peer_solver = DPMSolverMultistepScheduler(**CONFIG, prediction_type=prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        peer_solver.set_timesteps(steps)

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.sin(latents * (1 + timestep / 1000))

    theirs = start
    for timestep in peer_solver.timesteps:
        theirs = peer_solver.step(predict(theirs, int(timestep)), timestep, theirs).prev_sample
    ours = solver.sample(predict, start, products=PRODUCTS, kind=prediction, inference_steps=steps)
    assert torch.allclose(ours, theirs, atol=2e-3)
