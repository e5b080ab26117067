"""The course of the loss: points kept in checkpoints, a smoothed value, and a file of lines."""

from __future__ import annotations

import json
from typing import NamedTuple

MOST_POINTS = 2000
"""Points kept of one stage, evenly spaced over its updates."""
SMOOTHING = 0.95


class Point(NamedTuple):
    """The loss of one update, or of held-out pictures after it."""

    stage: str
    step: int
    loss: float
    learning_rate: float


class Record:
    """Collects points, and smooths the newest losses for people who watch."""

    def __init__(self, points: tuple[Point, ...] = (), validations: tuple[Point, ...] = ()) -> None:
        self._points, self._validations = list(points), list(validations)
        self._smooth, self._share = 0.0, 0.0

    @property
    def points(self) -> tuple[Point, ...]:
        """All points so far, in order."""
        return tuple(self._points)

    @property
    def validations(self) -> tuple[Point, ...]:
        """Losses on held-out pictures so far, in order."""
        return tuple(self._validations)

    @property
    def validation_loss(self) -> float | None:
        """The newest loss on held-out pictures."""
        return self._validations[-1].loss if self._validations else None

    def validated_at(self, stage: str, step: int) -> float | None:
        """The loss on held-out pictures that was measured right after an update."""
        newest = self._validations[-1] if self._validations else None
        return newest.loss if newest and (newest.stage, newest.step) == (stage, step) else None

    @property
    def smoothed(self) -> float:
        """Exponential mean of the losses since the start of this process."""
        return self._smooth / self._share if self._share else 0.0

    def add(self, stage: str, step: int, *, steps: int, loss: float, learning_rate: float) -> None:
        """Take in the loss of update `step` of `steps`."""
        self._smooth = SMOOTHING * self._smooth + (1 - SMOOTHING) * loss
        self._share = SMOOTHING * self._share + (1 - SMOOTHING)
        if step % spacing(steps) == 0 or step == steps:
            self._points.append(Point(stage, step, loss, learning_rate))

    def validated(self, stage: str, step: int, *, loss: float, learning_rate: float) -> None:
        """Take in the loss on held-out pictures after update `step`."""
        if self.validated_at(stage, step) is None:
            self._validations.append(Point(stage, step, loss, learning_rate))

    def lines(self) -> str:
        """One JSON object a line; those of held-out pictures have `validation_loss`."""
        rows = [point._asdict() for point in self._points]
        for point in self._validations:
            row = point._asdict()
            row["validation_loss"] = row.pop("loss")
            rows.append(row)
        return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def spacing(steps: int) -> int:
    """Updates from one point to the next."""
    return max(1, -(-steps // MOST_POINTS))
