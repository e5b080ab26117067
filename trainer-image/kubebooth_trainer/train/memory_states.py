"""Optimizer state from one form into another, when a run goes on in another memory profile.

Eight-bit state is bitsandbytes': blocks of 256 values, each with its greatest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kubebooth_trainer.train.checkpoints import State

MOMENTS = {"exp_avg": ("1", True), "exp_avg_sq": ("2", False)}
"""Moment of AdamW → its number in 8-bit state, and whether it has a sign."""
BLOCK, LEAST_8BIT = 256, 4096
"""Smaller weights keep their moments in float32."""


def fitted(state: State | None, optimizer: str) -> State | None:
    """A checkpoint as this optimizer wants it; state of others than AdamW stays as it is."""
    if state is None:
        return None
    return replace(state, tensors=fitted_tensors(state.tensors, optimizer))


def fitted_tensors(tensors: Mapping[str, Tensor], optimizer: str) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint as this optimizer wants them."""
    if optimizer == "AdamW8bit" and any(key.startswith("exp_avg/") for key in tensors):
        return _eight_bit(tensors)
    if optimizer == "AdamW" and any(key.startswith("state1/") for key in tensors):
        return _full(tensors)
    return tensors


def _eight_bit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    functional = _functional()
    maps = {sign: functional.create_dynamic_map(signed=sign) for sign in (True, False)}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in MOMENTS:
            found[key] = tensor
            continue
        number, sign = MOMENTS[kind]
        if tensor.numel() < LEAST_8BIT:
            found[f"state{number}/{name}"] = tensor.float()
            continue
        small, state = functional.quantize_blockwise(
            tensor.float().contiguous(), code=maps[sign].clone(), blocksize=BLOCK
        )
        found[f"state{number}/{name}"] = small
        found[f"qmap{number}/{name}"] = maps[sign].clone()
        found[f"absmax{number}/{name}"] = state.absmax
    return found


def _full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    functional = _functional()
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        moment = next((m for m, (number, _) in MOMENTS.items() if kind == f"state{number}"), None)
        if kind.rstrip("12") in ("qmap", "absmax"):
            continue
        if moment is None or tensor.dtype != torch.uint8:
            found[f"{moment}/{name}" if moment else key] = tensor
            continue
        number = MOMENTS[moment][0]
        found[f"{moment}/{name}"] = functional.dequantize_blockwise(
            tensor,
            absmax=tensors[f"absmax{number}/{name}"],
            code=tensors[f"qmap{number}/{name}"],
            blocksize=BLOCK,
        )
    return found


def _functional() -> Any:
    import bitsandbytes.functional

    return bitsandbytes.functional
