"""Work queue of keys with the semantics of client-go's; it knows neither cluster nor plan.

A key waits at most once, is worked on by one worker at a time, and a key that is added while a
worker is busy with it is worked on once more: nothing that happened is lost, and nothing that
happened often is done often.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 300.0


class QueueMetrics(Protocol):
    """Receives what happens in a queue."""

    def added(self, depth: int) -> None:
        """A key was added."""

    def started(self, depth: int, waited_s: float) -> None:
        """A worker took a key."""

    def finished(self, worked_s: float) -> None:
        """A worker is done with a key."""

    def retried(self) -> None:
        """A key was added after a failure or for later."""


class WorkQueue(Generic[K]):
    """Keys to work on, now or later. Not thread-safe: one event loop uses it."""

    def __init__(
        self,
        *,
        metrics: QueueMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`clock` gives seconds, `jitter` numbers of [0, 1)."""
        self._metrics = metrics
        self._clock = clock
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._dirty: dict[K, float] = {}
        self._busy: dict[K, float] = {}
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._count = 0
        self._failures: dict[K, int] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: K) -> None:
        """Work on `key` soon."""
        self._due.pop(key, None)
        if key in self._dirty:
            return
        self._dirty[key] = self._clock()
        if key not in self._busy:
            self._ready.append(key)
            self._wakeup.set()
        if self._metrics:
            self._metrics.added(len(self._ready))

    def add_after(self, key: K, delay_s: float) -> None:
        """Work on `key` in `delay_s` seconds, or sooner if it is added sooner."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock() + delay_s
        if key in self._dirty or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._later, (due, self._count, key))
        self._wakeup.set()

    def retry(self, key: K, *, delay_s: float | None = None) -> float:
        """Work on `key` again after its back-off (doubled by each failure in a row, up to five
        minutes, with jitter) but not before `delay_s`. Gives the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        backoff = min(FIRST_BACKOFF_S * 2.0 ** min(failures, 32), LONGEST_BACKOFF_S)
        wait = max(backoff * (0.5 + self._jitter() / 2), delay_s or 0.0)
        if self._metrics:
            self._metrics.retried()
        self.add_after(key, wait)
        return wait

    def again(self, key: K) -> float:
        """Work on `key` once more at once; in a row of such, after its back-off. Gives the
        seconds. Whoever undoes what another makes would otherwise turn with it for ever."""
        if key not in self._failures:
            self._failures[key] = 0
            self.add(key)
            return 0.0
        return self.retry(key)

    def forget(self, key: K) -> None:
        """The work on `key` succeeded: its next failure is the first."""
        self._failures.pop(key, None)

    def take(self) -> K | None:
        """The next key, now busy; None when none is ready."""
        self._promote()
        if not self._ready:
            return None
        key = self._ready.popleft()
        now = self._clock()
        waited_s = now - self._dirty.pop(key)
        self._busy[key] = now
        if self._metrics:
            self._metrics.started(len(self._ready), waited_s)
        return key

    def done(self, key: K) -> None:
        """The worker is done with `key`; it is ready again if it was added meanwhile."""
        began = self._busy.pop(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wakeup.set()
        if self._metrics:
            self._metrics.finished(self._clock() - began)

    async def get(self) -> K:
        """Wait for the next key."""
        while True:
            key = self.take()
            if key is not None:
                if self._ready:
                    self._wakeup.set()
                return key
            self._wakeup.clear()
            due = self.next_due()
            timeout = None if due is None else max(due - self._clock(), 0.001)
            try:
                async with asyncio.timeout(timeout):
                    await self._wakeup.wait()
            except TimeoutError:
                continue

    def next_due(self) -> float | None:
        """When the next delayed key is due, in seconds of the clock."""
        while self._later and self._due.get(self._later[0][2]) != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else None

    def busy_s(self) -> list[float]:
        """For how long each busy worker has been busy, in seconds."""
        now = self._clock()
        return [now - began for began in self._busy.values()]

    def _promote(self) -> None:
        now = self._clock()
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._later)
            self.add(key)
