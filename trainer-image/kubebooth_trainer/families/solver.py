"""Paints: DPM-Solver++ (second order, multistep) from start noise, with no random draw inside.

"DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022), in the
form and with the timesteps that diffusers uses by default. It must not know networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kubebooth_trainer.families.diffusion import Prediction

LEAST_SIGNAL = 2.0**-24
"""Stands for the signal of pure noise, which has no logarithm."""
Predict = Callable[[Tensor, int], Tensor]
"""Latents [n, c, h, w] and timestep → what the denoiser says about them."""


def timesteps(count: int, *, inference_steps: int) -> list[int]:
    """Evenly spaced timesteps from the last of `count` down, `inference_steps` of them."""
    steps = min(inference_steps, count - 1)
    places = torch.linspace(0, count - 1, steps + 1, dtype=torch.float64).round()
    return [int(place) for place in places.flip(0)[:-1]]


def sample(
    predict: Predict, noise: Tensor, *, products: Tensor, kind: Prediction, inference_steps: int
) -> Tensor:
    """Latents [n, c, h, w] out of start noise; `products` are the cumulative alphas [timesteps]."""
    signals = products.double().cpu().clamp(min=LEAST_SIGNAL)
    alphas, sigmas = signals.sqrt().tolist(), (1 - signals).sqrt().tolist()
    halves = (0.5 * torch.log(signals / (1 - signals))).tolist()
    path = timesteps(len(signals), inference_steps=inference_steps)
    latents, before = noise, None
    for place, t in enumerate(path):
        clean = _clean(kind, latents, predict(latents, t), alpha=alphas[t], sigma=sigmas[t])
        if place + 1 == len(path):
            return clean
        after = path[place + 1]
        width = halves[after] - halves[t]
        guess = clean
        if before is not None:
            ratio = (halves[t] - halves[path[place - 1]]) / width
            guess = clean + (clean - before) / (2 * ratio)
        shrink = torch.expm1(torch.tensor(-width, dtype=torch.float64)).item()
        latents = sigmas[after] / sigmas[t] * latents - alphas[after] * shrink * guess
        before = clean
    return latents


def _clean(kind: Prediction, noisy: Tensor, said: Tensor, *, alpha: float, sigma: float) -> Tensor:
    """The clean latents that a prediction amounts to."""
    if kind == "epsilon":
        return (noisy - sigma * said) / alpha
    return alpha * noisy - sigma * said
