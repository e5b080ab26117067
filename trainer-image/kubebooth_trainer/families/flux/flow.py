"""Flow matching in closed form: sigmas, their shift by resolution, packing, place ids.

Pure tensor functions; they must not know networks. `x_s = (1 - s) x_0 + s noise` for a sigma `s`
in (0, 1], and the network says `noise - x_0`: "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.door import Sampling
from kubebooth_trainer.families.drawing import logit_normal

LEAST_SIGMA = 2.0**-20
SHIFT_OF_TOKENS = ((256, 0.5), (4096, 1.15))
"""Packed latent pixels → shift, at two places of a line: what Flux was trained and is sampled
with."""


@dataclass(frozen=True)
class Schedule:
    """How sampling shifts its sigmas, from a scheduler's config."""

    dynamic: bool
    """Whether the shift grows with the picture; `shift` is for when it does not."""
    shift: float
    line: tuple[tuple[int, float], tuple[int, float]] = SHIFT_OF_TOKENS


def schedule_of(config: Mapping[str, Any], *, name: str) -> Schedule:
    """The schedule of a config file. Raises `DataError` for one that is not Flux's."""
    kind = config.get("_class_name")
    odd = [
        key
        for key in (
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
            "shift_terminal",
        )
        if config.get(key)
    ]
    if config.get("time_shift_type", "exponential") != "exponential":
        odd.append("time_shift_type")
    if kind != "FlowMatchEulerDiscreteScheduler" or odd:
        told = f"sets {', '.join(odd)}" if odd else f"names {kind!r}"
        raise DataError(
            f"base model: {name} {told}; Flux is sampled by a plain"
            " FlowMatchEulerDiscreteScheduler: restore the file of FLUX.1 [dev]"
        )
    ends = (
        (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
        (config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
    )
    try:
        first, last = ((int(tokens), float(shift)) for tokens, shift in ends)
        plain = float(config.get("shift", 1.0))
    except (TypeError, ValueError) as error:
        raise DataError(f"base model: {name} has a shift that is no number") from error
    if first[0] == last[0] or plain <= 0:
        raise DataError(f"base model: {name} has shifts that make no line")
    return Schedule(bool(config.get("use_dynamic_shifting", False)), plain, (first, last))


def shift_of(tokens: int, line: tuple[tuple[int, float], ...] = SHIFT_OF_TOKENS) -> float:
    """The shift, called mu, of a picture of so many packed latent pixels; not clamped."""
    (low, least), (high, most) = line
    slope = (most - least) / (high - low)
    return least + slope * (tokens - low)


def shifted(sigmas: Tensor, mu: float) -> Tensor:
    """e^mu / (e^mu + 1/s - 1): more weight on high noise, 0 and 1 stay where they are."""
    return math.exp(mu) * sigmas / (1 + (math.exp(mu) - 1) * sigmas)


def sigmas_of(shares: Tensor, *, sampling: Sampling, tokens: int) -> Tensor:
    """Shares in [0, 1) → sigmas in (0, 1], monotone, float32.

    `Auto` is `FluxShift`: logit-normal, then shifted for the picture's size.
    """
    if sampling == "Uniform":
        drawn = shares.double()
    elif sampling == "LogitNormal":
        drawn = logit_normal(shares)
    else:
        drawn = shifted(logit_normal(shares), shift_of(tokens))
    return drawn.clamp(min=LEAST_SIGMA, max=1.0).float()


def sampling_sigmas(schedule: Schedule, *, tokens: int, inference_steps: int) -> list[float]:
    """The sigmas that sampling goes through, from 1 down to 0: one more than steps."""
    places = torch.linspace(1.0, 1 / inference_steps, inference_steps, dtype=torch.float64)
    if schedule.dynamic:
        found = shifted(places, shift_of(tokens, schedule.line))
    else:
        found = shifted(places, math.log(schedule.shift))
    return [*found.float().tolist(), 0.0]


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_s of latents and noise [n, channels, h, w] and sigmas [n]."""
    s = sigmas.view(-1, 1, 1, 1)
    return (1.0 - s) * latents + s * noise


def tokens_of(height: int, width: int) -> int:
    """Packed latent pixels of latents of a height and width."""
    return (height // 2) * (width // 2)


def packed(latents: Tensor) -> Tensor:
    """[n, channels, h, w] → [n, h/2 * w/2, 4 * channels]: squares of 2 by 2 become one token."""
    count, channels, height, width = latents.shape
    squares = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def unpacked(tokens: Tensor, *, height: int, width: int) -> Tensor:
    """The way back: [n, h/2 * w/2, 4 * channels] → [n, channels, h, w]."""
    count, _, packed_channels = tokens.shape
    channels = packed_channels // 4
    squares = tokens.reshape(count, height // 2, width // 2, channels, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, height, width)


def place_ids(height: int, width: int, *, device: torch.device) -> Tensor:
    """[h/2 * w/2, 3] of latents of a height and width: 0, row, column of each token, float32."""
    rows = torch.arange(height // 2, dtype=torch.float32, device=device)
    columns = torch.arange(width // 2, dtype=torch.float32, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.nn.functional.pad(grid, (1, 0))
