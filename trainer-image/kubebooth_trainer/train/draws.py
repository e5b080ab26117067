"""Every random number of training, each a pure function of the seed and of what it is for.

No generator is carried from step to step, so there is no random state to save: a resumed run draws
what an undisturbed one would. It must not know models or pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key(seed: int, purpose: str, *index: int | str) -> int:
    """64 bits from BLAKE2b over seed, purpose and index, each with its length before it."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, purpose, *index):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest(), "big")


def integer(below: int, seed: int, purpose: str, *index: int | str) -> int:
    """A whole number in [0, below)."""
    return key(seed, purpose, *index) * below >> 64


def chance(share: float, seed: int, purpose: str, *index: int | str) -> bool:
    """True for a share of all indices."""
    return key(seed, purpose, *index) < share * 2**64


def share(seed: int, purpose: str, *index: int | str) -> float:
    """A share in [0, 1), even; 53 bits."""
    return (key(seed, purpose, *index) >> 11) / 2**53


def normal(shape: Sequence[int], seed: int, purpose: str, *index: int | str) -> Tensor:
    """Standard normal float32 of a shape, drawn on the CPU so that every device trains alike."""
    generator = torch.Generator().manual_seed(key(seed, purpose, *index) >> 1)
    return torch.randn(tuple(shape), generator=generator)


def order(count: int, seed: int, purpose: str, *index: int | str) -> list[int]:
    """A permutation of range(count)."""
    return sorted(range(count), key=lambda place: (key(seed, purpose, *index, place), place))


class Order:
    """Endless passes over `count` places, each pass shuffled by its own key.

    The newest two passes are remembered, since batches cross from one into the next.
    """

    def __init__(self, count: int, *, seed: int, purpose: str) -> None:
        self._count, self._seed, self._purpose = count, seed, purpose
        self._passes: dict[int, list[int]] = {}

    def at(self, index: int) -> int:
        """The place that the draw number `index` (from 0) falls on."""
        turn, position = divmod(index, self._count)
        if turn not in self._passes:
            self._passes = {t: p for t, p in self._passes.items() if t == turn - 1}
            self._passes[turn] = order(self._count, self._seed, self._purpose, turn)
        return self._passes[turn][position]
