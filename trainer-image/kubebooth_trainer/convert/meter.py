"""How far a conversion is, in bytes, told to whoever shows it; it must not know formats."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Protocol

from kubebooth_trainer.convert.door import Check, Plan
from kubebooth_trainer.convert.writing.targets import Wish, written_bytes
from kubebooth_trainer.errors import Preempted


class Shown(Protocol):
    """Where progress is told, such as a `Reporter`."""

    @property
    def stop(self) -> threading.Event:
        """Set when the work shall end soon."""

    def advance(
        self,
        stage: str,
        step: int,
        total_steps: int,
        *,
        percentage: int,
        remaining_s: int | None = None,
    ) -> None:
        """Tell a position in bytes."""


def work_bytes(plan: Plan, wish: Wish, checks: Iterable[Check]) -> int:
    """Bytes that are written, read back and checked in all."""
    passes = 2 if wish.read_back else 1
    return passes * written_bytes(plan) + sum(check.segment.length for check in checks)


class Meter:
    """Adds bytes up, from any thread. Raises `Preempted` when the work shall stop."""

    def __init__(
        self, shown: Shown, stage: str, plan: Plan, wish: Wish, checks: Iterable[Check]
    ) -> None:
        self._shown = shown
        self._stage = stage
        self._total = max(1, work_bytes(plan, wish, checks))
        self._done = 0
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def __call__(self, _what: str, count: int) -> None:
        """So many further bytes are done."""
        if self._shown.stop.is_set():
            raise Preempted(
                "stopped while converting; nothing of it is shown, and the next try starts anew"
            )
        with self._lock:
            self._done = min(self._total, self._done + count)
            done = self._done
        passed_s = time.monotonic() - self._began
        left_s = passed_s * (self._total - done) / done if done else None
        self._shown.advance(
            self._stage,
            done,
            self._total,
            percentage=100 * done // self._total,
            remaining_s=int(left_s) if left_s is not None else None,
        )
