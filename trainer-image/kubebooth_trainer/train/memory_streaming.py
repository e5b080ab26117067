"""Weights that wait in the host's memory and visit the accelerator layer by layer.

A layer borrows copies for as long as it computes. With gradient checkpointing the copies of one
block at a time live until its backward pass is over; gradients come back to the host, where the
optimizer works. It must not know models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MARK = "_kubebooth_borrows"
Borrow = Callable[[Tensor], Tensor]


def stream(network: nn.Module, *, device: torch.device, borrow: Borrow | None = None) -> int:
    """Let every layer of a network borrow its weights on `device`; the number of layers that now
    do and did not before. Called again it takes in layers that came later.

    The weights must be in the host's memory already. `borrow` gives the copy of one weight.
    """
    taken = 0
    copy = borrow or (lambda tensor: tensor.to(device, non_blocking=True))
    for layer in network.modules():
        if list(layer.children()) or not layer._parameters or hasattr(layer, MARK):
            continue
        setattr(layer, MARK, True)
        layer.forward = _borrowing(layer, layer.forward, copy)
        taken += 1
    return taken


def _borrowing(layer: nn.Module, forward: Callable[..., Any], copy: Borrow) -> Callable[..., Any]:
    def borrowing(*given: Any, **named: Any) -> Any:
        own, state = dict(layer._parameters), dict(layer._buffers)
        parameters: dict[str, Any] = layer._parameters
        buffers: dict[str, Any] = layer._buffers
        # Copies are part of the graph: their gradients arrive at the weights in the host's memory.
        parameters.update({name: copy(t) for name, t in own.items() if t is not None})
        buffers.update({name: copy(t) for name, t in state.items() if t is not None})
        try:
            return forward(*given, **named)
        finally:
            parameters.update(own)
            buffers.update(state)

    return borrowing
