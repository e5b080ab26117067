"""Evenly distributed shares become timestep shares; what all families do alike. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_normal(shares: Tensor) -> Tensor:
    """Shares in [0, 1) → shares whose logit is standard normal, monotone, float64.

    "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (2024), section 3.1.
    """
    inside = shares.double().clamp(min=2.0**-40, max=1 - 2.0**-40)
    normal: Tensor = torch.special.ndtri(inside)
    return normal.sigmoid()


def discrete(shares: Tensor, *, count: int) -> Tensor:
    """Shares in [0, 1) → whole timesteps 0 … count - 1, int64."""
    return (shares.double() * count).long().clamp(max=count - 1)
