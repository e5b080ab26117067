"""How long to wait and how often to try again; it must not know what is tried."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kubebooth_store.errors import Corrupt, Unavailable

T = TypeVar("T")

_CORRUPT_TRIES = 4
_SLOWEST_BYTES_PER_S = 64 * 1024


class Transient(Exception):
    """A fault that another try may mend; `corrupt` when bytes were damaged on their way."""

    def __init__(self, sentence: str, *, corrupt: bool = False) -> None:
        super().__init__(sentence)
        self.corrupt = corrupt


@dataclass(frozen=True)
class Patience:
    """Time-outs of one store, all derived from one number."""

    timeout_s: float
    """Total time for one request with all its tries; transfers get more by their size."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 8.0

    @property
    def idle_s(self) -> float:
        """Longest silence of a connection, in seconds."""
        return min(30.0, self.timeout_s / 3)

    @property
    def connect_s(self) -> float:
        """Longest wait for a connection, in seconds."""
        return min(10.0, self.timeout_s / 3)


@dataclass(frozen=True)
class Attempt:
    """One try of a request."""

    number: int
    """1 for the first."""
    deadline: float
    """Monotonic time at which the whole request is given up."""

    def check(self) -> None:
        """Raise `Transient` once the time is over, so that a trickle does not last for ever."""
        if time.monotonic() >= self.deadline:
            raise Transient("it was too slow")


def persist(
    action: Callable[[Attempt], T], *, patience: Patience, what: str, size_bytes: int = 0
) -> T:
    """Try an action until it gives a result, with exponential back-off and full jitter.

    Raises `Unavailable` when the time is over and `Corrupt` when bytes arrive damaged repeatedly;
    both name `what`.
    """
    began = time.monotonic()
    allowed_s = patience.timeout_s + size_bytes / _SLOWEST_BYTES_PER_S
    deadline = began + allowed_s
    number = damaged = 0
    while True:
        number += 1
        try:
            return action(Attempt(number, deadline))
        except Transient as fault:
            damaged += fault.corrupt
            if damaged >= _CORRUPT_TRIES:
                raise Corrupt(
                    f"{what}: {fault}, {damaged} times; check the network path"
                ) from fault
            ceiling = patience.first_pause_s * 2 ** min(number - 1, 16)
            pause_s = random.uniform(0, min(ceiling, patience.longest_pause_s))
            if time.monotonic() + pause_s >= deadline:
                raise Unavailable(
                    f"{what}: {fault}; gave up after {number} tries in "
                    f"{time.monotonic() - began:.1f} s; check that the store is up and reachable"
                ) from fault
            time.sleep(pause_s)
