"""Paints many pictures in batches of fixed composition, watching for the wish to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import TypeVar

from PIL import Image

from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.families.door import Model, Painting

T = TypeVar("T")
PIXELS_AT_ONCE = 4 * 512 * 512
MOST_AT_ONCE = 16


def batches(things: Sequence[T], *, resolution: int) -> Iterator[Sequence[T]]:
    """Cut into batches that fit into memory; the cut depends on the resolution alone."""
    size = max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // resolution**2))
    for start in range(0, len(things), size):
        yield things[start : start + size]


def paint_all(
    model: Model,
    paintings: Sequence[Painting],
    *,
    resolution: int,
    inference_steps: int,
    guidance_scale: float,
    stop: Event,
    on_done: Callable[[int], None],
) -> list[Image.Image]:
    """All pictures in order; `on_done` hears how many more are done.

    Raises `Preempted` between batches when `stop` is set.
    """
    pictures: list[Image.Image] = []
    for batch in batches(paintings, resolution=resolution):
        if stop.is_set():
            raise Preempted("stopped while painting samples; the trained state is saved")
        pictures += model.paint(
            batch, inference_steps=inference_steps, guidance_scale=guidance_scale
        )
        on_done(len(batch))
    return pictures
