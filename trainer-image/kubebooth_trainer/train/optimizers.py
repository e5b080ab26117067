"""The optimizers that can be asked for, with state that goes by the names of weights.

It must not know schedules or models.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor, nn

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.train.stages import Part

BETAS, EPSILON = (0.9, 0.999), 1e-8
Named = Mapping[str, nn.Parameter]
Shapes = dict[str, tuple[int, ...]]
RECKONED = ("step", "RMS")
"""State that follows from the number of the update, or is made anew in each."""
ESTIMATE = ("d", "d0", "d_max", "d_numerator", "k")
"""What Prodigy knows of all weights together."""


class Optimizer:
    """One optimizer over groups of named weights; a group is a part of the model."""

    def __init__(self, training: Training, groups: Mapping[Part, Named]) -> None:
        self._kind = training.optimizer
        self._groups = groups
        self._group_of = {
            weight: number
            for number, named in enumerate(groups.values())
            for weight in named.values()
        }
        self._optimizer: Any = MAKERS[self._kind](
            [{"params": list(named.values())} for named in groups.values()],
            training.weight_decay,
        )

    def set_rate(self, group: Part, rate: float) -> None:
        """Learning rate of a group from now on."""
        place = list(self._groups).index(group)
        self._optimizer.param_groups[place]["lr"] = rate

    def step(self) -> None:
        """Apply the gradients that are there; a weight without one stays as it is."""
        self._optimizer.step()

    def step_one(self, weight: nn.Parameter) -> None:
        """Apply the gradient of one weight; nothing else moves. Not for Prodigy, which estimates
        over all weights together."""
        groups = self._optimizer.param_groups
        all_weights = [group["params"] for group in groups]
        # Optimizers walk through every weight they have, which for each of a thousand is too long.
        for number, group in enumerate(groups):
            group["params"] = [weight] if number == self._group_of[weight] else []
        try:
            self._optimizer.step()
        finally:
            for group, weights in zip(groups, all_weights, strict=True):
                group["params"] = weights

    def zero_grad(self) -> None:
        """Free all gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def capture(self) -> dict[str, Tensor]:
        """The state by kind and name of weight, such as `exp_avg/denoiser.conv_in.weight`; not
        copied. Nothing of a weight that has had no gradient."""
        found: dict[str, Tensor] = {}
        for named in self._groups.values():
            for name, weight in named.items():
                for key, value in self._optimizer.state.get(weight, {}).items():
                    if key not in RECKONED and isinstance(value, Tensor):
                        found[f"{key}/{name}"] = value
        if self._kind == "Prodigy":
            group = self._optimizer.param_groups[0]
            for key in ESTIMATE:
                found[f"prodigy/{key}"] = torch.tensor(float(group[key]), dtype=torch.float64)
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Continue after `step` updates. Raises `DataError` when tensors do not fit."""
        for named in self._groups.values():
            for name, weight in named.items():
                state = self._state_of(name, weight, tensors)
                if state:
                    self._optimizer.state[weight] = {**self._counted(weight, step), **state}
        if self._kind == "Prodigy" and step > 0:
            self._restore_estimate(tensors)

    def _state_of(self, name: str, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        wanted = self._expected(weight)
        found = {key: tensors[f"{key}/{name}"] for key in wanted if f"{key}/{name}" in tensors}
        if not found:
            return {}
        for key, (shape, dtype) in wanted.items():
            told = found.get(key)
            # Prodigy keeps no copy of weights that began as zero.
            shapes = {shape, ()} if key == "p0" else {shape}
            if told is None or tuple(told.shape) not in shapes or told.dtype != dtype:
                raise DataError(f"checkpoint: the optimizer's state of {name} does not fit")
        return {key: tensor.to(weight.device, copy=True) for key, tensor in found.items()}

    def _expected(self, weight: Tensor) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if self._kind == "AdamW8bit":
            return _eight_bit_state(weight)
        dtype = torch.float32 if self._kind == "Adafactor" else weight.dtype
        return {key: (shape, dtype) for key, shape in SHAPES[self._kind](weight).items()}

    def _counted(self, weight: Tensor, step: int) -> dict[str, Any]:
        if self._kind == "AdamW":
            return {"step": torch.tensor(float(step), device=weight.device)}
        if self._kind == "Adafactor":
            return {"step": step, "RMS": 0}
        return {"step": step}

    def _restore_estimate(self, tensors: Mapping[str, Tensor]) -> None:
        for key in ESTIMATE:
            told = tensors.get(f"prodigy/{key}")
            if told is None or told.numel() != 1:
                raise DataError(f"checkpoint: the optimizer's estimate {key} is missing")
            value = told.item()
            for group in self._optimizer.param_groups:
                group[key] = int(value) if key == "k" else float(value)


def _adamw(groups: list[dict[str, Any]], weight_decay: float) -> Any:
    # Fused: one pass over memory for each weight, on processors as on accelerators.
    return torch.optim.AdamW(
        groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=True
    )


def _adamw_8bit(groups: list[dict[str, Any]], weight_decay: float) -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=weight_decay)


def _adafactor(groups: list[dict[str, Any]], weight_decay: float) -> Any:
    """With a fixed learning rate, as the recipes for SDXL want it."""
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        lr=0.0,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        weight_decay=weight_decay,
    )


def _prodigy(groups: list[dict[str, Any]], weight_decay: float) -> Any:
    """With the settings that its authors give for diffusion models."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        return Prodigy(
            groups,
            lr=1.0,
            betas=BETAS,
            weight_decay=weight_decay,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
        )


MAKERS: dict[str, Callable[[list[dict[str, Any]], float], Any]] = {
    "AdamW": _adamw,
    "AdamW8bit": _adamw_8bit,
    "Adafactor": _adafactor,
    "Prodigy": _prodigy,
}


def _two_moments(weight: Tensor) -> Shapes:
    return {"exp_avg": tuple(weight.shape), "exp_avg_sq": tuple(weight.shape)}


def _factored(weight: Tensor) -> Shapes:
    shape = tuple(weight.shape)
    if len(shape) < 2:
        return {"exp_avg_sq": shape}
    return {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": (*shape[:-2], shape[-1])}


def _with_distance(weight: Tensor) -> Shapes:
    return {**_two_moments(weight), "s": (weight.numel(),), "p0": (weight.numel(),)}


SHAPES: dict[str, Callable[[Tensor], Shapes]] = {
    "AdamW": _two_moments,
    "Adafactor": _factored,
    "Prodigy": _with_distance,
}
"""State of one weight."""
BLOCK, LEAST_8BIT = 256, 4096
"""bitsandbytes scales blocks of so many values, and keeps smaller weights in float32."""


def _eight_bit_state(weight: Tensor) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    shape = tuple(weight.shape)
    if weight.numel() < LEAST_8BIT:
        return dict.fromkeys(("state1", "state2"), (shape, torch.float32))
    blocks = -(-weight.numel() // BLOCK)
    return {
        **dict.fromkeys(("state1", "state2"), (shape, torch.uint8)),
        **dict.fromkeys(("qmap1", "qmap2"), ((BLOCK,), torch.float32)),
        **dict.fromkeys(("absmax1", "absmax2"), ((blocks,), torch.float32)),
    }
