"""Which weights a training learns: those of the model itself, or a low-rank update beside them.

The stages ask here for weights by name; they must not know what kind of weights those are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import nn

from kubebooth_trainer.train.stages import Part


class HasParts(Protocol):
    """The bit of a model that is needed here; see `families.door.Model`."""

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""


class Weights(Protocol):
    """What is trained, saved and published of a model."""

    def of(self, part: Part) -> dict[str, nn.Parameter]:
        """The weights of a part by name; names begin with the part's and stay the same for ever,
        as checkpoints carry them."""

    def learn(self, parts: Collection[Part]) -> None:
        """Let these parts learn, and hold the others still."""

    def discard(self, part: Part) -> None:
        """Forget what a part learned: its weights are again those it began with, bit for bit."""

    def base(self) -> AbstractContextManager[None]:
        """The model as it was before any training, for as long as the context is open. What was
        learned may be lost afterwards."""


class OwnWeights:
    """Every weight of the model: the full fine-tune."""

    def __init__(self, model: HasParts) -> None:
        self._model = model

    def of(self, part: Part) -> dict[str, nn.Parameter]:
        """See `Weights.of`."""
        return {
            f"{part}.{name}": weight for name, weight in self._model.parts[part].named_parameters()
        }

    def learn(self, parts: Collection[Part]) -> None:
        """See `Weights.learn`."""
        for part, module in self._model.parts.items():
            module.requires_grad_(part in parts)
            module.train(part in parts)

    def discard(self, part: Part) -> None:
        """See `Weights.discard`."""
        self._model.reset(part)

    @contextmanager
    def base(self) -> Iterator[None]:
        """See `Weights.base`; what was learned is lost, a second copy of a model is too large."""
        for part in self._model.parts:
            self._model.reset(part)
        yield
