"""Turns finished work into percentage, remaining time and speed for people who watch."""

from __future__ import annotations

import time

from kubebooth_trainer.reporter import Reporter

PREPARED = 5
"""Percentage of a session's work that is done when training starts."""


class Meter:
    """Counts work in units of one forward pass of one sample through the denoiser."""

    def __init__(self, reporter: Reporter, *, total: float) -> None:
        self._reporter, self._total = reporter, max(total, 1.0)
        self._done = self._skipped = 0.0
        self._started = time.monotonic()

    def skip(self, units: float) -> None:
        """Count work that an earlier attempt did; it says nothing about the speed."""
        self._done += units
        self._skipped += units

    def add(self, units: float) -> None:
        """Count work that was just done."""
        self._done += units

    def tell(
        self,
        stage: str,
        step: int,
        total_steps: int,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        images_per_second: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        """Report a stage's position with percentage and remaining time of the whole."""
        share = min(1.0, self._done / self._total)
        fresh = self._done - self._skipped
        elapsed_s = time.monotonic() - self._started
        left = max(0.0, self._total - self._done)
        self._reporter.advance(
            stage,
            step,
            total_steps,
            percentage=min(99, int(PREPARED + (100 - PREPARED) * share)),
            remaining_s=round(elapsed_s * left / fresh) if fresh > 0 else None,
            loss=loss,
            learning_rate=learning_rate,
            images_per_second=images_per_second,
            validation_loss=validation_loss,
        )


class Speed:
    """Pictures per second over the newest few updates."""

    def __init__(self, images_per_update: int) -> None:
        self._images, self._last, self._mean_s = images_per_update, time.monotonic(), 0.0

    def tick(self) -> float:
        """Take the time of one update; the smoothed speed."""
        now = time.monotonic()
        taken_s, self._last = now - self._last, now
        self._mean_s = taken_s if self._mean_s == 0 else 0.9 * self._mean_s + 0.1 * taken_s
        return self._images / max(self._mean_s, 1e-9)
