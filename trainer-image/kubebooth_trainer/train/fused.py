"""Backward passes whose gradients never exist together: each is read and freed at once.

Clipping needs the norm of everything that learns, which is known only when every gradient has been
seen. So a first pass measures and a second one, of equal gradients, updates. It must not know
optimizers or models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Take = Callable[[nn.Parameter], None]


@contextmanager
def one_by_one(weights: Sequence[nn.Parameter], take: Take) -> Iterator[None]:
    """While open, call `take` with a weight as soon as a backward pass has its whole gradient, and
    free the gradient then. `take` may change the weight: nothing else in the pass reads it."""

    def seen(weight: Tensor) -> None:
        if isinstance(weight, nn.Parameter):
            take(weight)
        weight.grad = None

    hooks: list[RemovableHandle] = [
        weight.register_post_accumulate_grad_hook(seen)  # type: ignore[no-untyped-call]
        for weight in weights
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def norm_of(gradient: Tensor) -> Tensor:
    """Euclidean norm of one gradient, a scalar, as it is when many are measured at once."""
    norm: Tensor = torch._foreach_norm([gradient])[0]
    return norm


def norm_of_all(norms: Sequence[Tensor]) -> Tensor:
    """Norm of gradients with these norms, float32, as `clip_grad_norm_` has it."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack([one.float() for one in norms]))
    return norm
