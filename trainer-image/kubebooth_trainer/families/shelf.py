"""A frozen component that may be put away while nothing reads it, and comes back from its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Shelf:
    """Stands for a network: any use of it brings it back, with the bits it had."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._network: Any = load()
        self.config: Any = self._network.config
        """Stays when the network is put away."""

    @property
    def is_here(self) -> bool:
        """Whether it takes memory."""
        return self._network is not None

    def release(self) -> None:
        """Put it away."""
        self._network = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._present(), name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._present()(*given, **named)

    def _present(self) -> Any:
        if self._network is None:
            self._network = self._load()
        return self._network
