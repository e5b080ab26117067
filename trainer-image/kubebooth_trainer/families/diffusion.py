"""The diffusion objective in closed form: noise schedule, targets, min-SNR weights.

Pure tensor functions; they must not know networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from kubebooth_trainer.errors import ConfigurationError, DataError

MOST_TIMESTEPS = 100_000
Prediction = Literal["epsilon", "v_prediction"]


def alphas_cumprod(config: Mapping[str, Any], *, zero_terminal_snr: bool = False) -> Tensor:
    """Cumulative products of 1 - beta, float32 [timesteps], from a scheduler's config.

    Raises `DataError` for a schedule that is not `linear` or `scaled_linear`.
    """
    count, start, end = _numbers(config)
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None or kind not in ("linear", "scaled_linear"):
        raise DataError(
            f"base model: scheduler/scheduler_config.json has beta_schedule {kind!r}; only linear"
            " and scaled_linear can be trained: choose a base model with one of them"
        )
    if kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    else:
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    products = torch.cumprod(1.0 - betas, dim=0)
    return rescaled_to_zero_snr(products) if zero_terminal_snr else products


def _numbers(config: Mapping[str, Any]) -> tuple[int, float, float]:
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    numbers = all(type(beta) in (int, float) and 0 < beta < 1 for beta in (start, end))
    if type(count) is not int or not 1 < count <= MOST_TIMESTEPS or not numbers:
        raise DataError(
            "base model: scheduler/scheduler_config.json has num_train_timesteps"
            f" {str(count)[:20]}, beta_start {str(start)[:20]} and beta_end {str(end)[:20]}, which"
            " make no noise schedule"
        )
    return count, float(start), float(end)


def rescaled_to_zero_snr(products: Tensor) -> Tensor:
    """Shift and stretch sqrt(alphas_cumprod) so that the last is 0 and the first unchanged.

    Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps Are Flawed" (2023).
    """
    roots = products.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)) ** 2


def prediction_of(config: Mapping[str, Any], *, zero_terminal_snr: bool) -> Prediction:
    """What the denoiser predicts, from a scheduler's config."""
    kind = config.get("prediction_type", "epsilon")
    if kind == "v_prediction":
        return "v_prediction"
    if kind != "epsilon":
        raise DataError(
            f"base model: scheduler/scheduler_config.json has prediction_type {kind!r}; this"
            " family trains epsilon and v_prediction"
        )
    if zero_terminal_snr:
        raise ConfigurationError(
            "training.zeroTerminalSnr needs a base model that predicts v, this one predicts"
            " epsilon; turn it off or use baseModel.variant sd21-768"
        )
    return "epsilon"


def add_noise(latents: Tensor, noise: Tensor, products: Tensor) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1-a) noise; `products` is a [n] of each sample's timestep."""
    a = products.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(kind: Prediction, latents: Tensor, noise: Tensor, products: Tensor) -> Tensor:
    """What the denoiser should say: noise, or v = sqrt(a) noise - sqrt(1-a) x_0."""
    if kind == "epsilon":
        return noise
    a = products.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def min_snr_weights(kind: Prediction, products: Tensor, *, gamma: float) -> Tensor:
    """Loss weights [n]: min(snr, gamma)/snr for epsilon, min(snr, gamma)/(snr + 1) for v.

    Written with a and 1-a so that v stays defined at snr 0. "Efficient Diffusion Training via
    Min-SNR Weighting Strategy" (2023).
    """
    signal, rest = products, 1 - products
    clipped = torch.minimum(signal, gamma * rest)
    if kind == "epsilon":
        return clipped / signal
    return clipped


def losses(said: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
    """Mean squared error of each sample in float32, weighted: [n]."""
    errors = (said.float() - wanted.float()).pow(2).mean(dim=(1, 2, 3))
    return errors if weights is None else errors * weights
