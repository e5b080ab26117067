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
    """Time within which a request may be tried, and time of one try while no byte moves."""
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
    began: float
    """Monotonic time at which this try began."""
    timeout_s: float
    """Time for it when no byte moves, in seconds."""

    def check(self, done_bytes: int = 0) -> None:
        """Raise `Transient` once the time is over, so that a trickle does not last for ever.

        Bytes that moved lengthen the time, at 64 KiB/s.
        """
        allowed_s = self.timeout_s + done_bytes / _SLOWEST_BYTES_PER_S
        if time.monotonic() >= self.began + allowed_s:
            raise Transient("it was too slow")


def persist(action: Callable[[Attempt], T], *, patience: Patience, what: str) -> T:
    """Try an action until it gives a result, with exponential back-off and full jitter.

    No try begins later than `timeout_s` after the first, but one more always does after a fault.
    Raises `Unavailable` when the time is over and `Corrupt` when bytes arrive damaged repeatedly;
    both name `what`.
    """
    first = time.monotonic()
    number = damaged = 0
    while True:
        number += 1
        try:
            return action(Attempt(number, time.monotonic(), patience.timeout_s))
        except Transient as fault:
            damaged += fault.corrupt
            if damaged >= _CORRUPT_TRIES:
                raise Corrupt(f"{what}: {fault}, {damaged} times; check the network") from fault
            ceiling = patience.first_pause_s * 2 ** min(number - 1, 16)
            pause_s = random.uniform(0, min(ceiling, patience.longest_pause_s))
            passed_s = time.monotonic() - first
            if number > 1 and passed_s + pause_s >= patience.timeout_s:
                raise Unavailable(
                    f"{what}: {fault}; gave up after {number} tries in {passed_s:.1f} s; "
                    "check that the store is up and reachable"
                ) from fault
            time.sleep(pause_s)
