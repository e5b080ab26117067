"""Learning rate as a closed form of the update's number; it must not know optimizers."""

from __future__ import annotations

import math

from kubebooth_api.v1alpha1.training import LrScheduler

RESTARTS = 3
"""Cosine half-waves of `CosineWithRestarts`."""
POLYNOMIAL_END = 1e-7
"""Where `Polynomial` (power 1, as in the notebook) ends."""


def learning_rate(
    scheduler: LrScheduler, *, peak: float, step: int, steps: int, warmup_steps: int
) -> float:
    """Learning rate of the update number `step` (from 0) of `steps`.

    It rises linearly from 0 over `warmup_steps`, for every scheduler. The falling parts are those
    of `diffusers.optimization`, as the notebook used them.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    if scheduler in ("Constant", "ConstantWithWarmup"):
        return peak
    if scheduler == "Linear":
        return peak * (1 - done)
    if scheduler == "Polynomial":
        end = min(peak, POLYNOMIAL_END)
        return end + (peak - end) * (1 - done)
    if scheduler == "Cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if done >= 1:
        return 0.0
    return peak * 0.5 * (1 + math.cos(math.pi * (done * RESTARTS % 1)))
