"""Which shapes training pictures may have, and which of them fits a picture best; pure numbers.

A bucket is a shape of about the area of the training resolution squared, never of more, so that
no bucket needs more memory than the square. It must not import what a decoder need not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Shape:
    """Height and width of a training picture in pixels."""

    height: int
    width: int

    @property
    def told(self) -> str:
        """How people write it."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Cut:
    """The part of an upright picture that becomes a training picture, in whole pixels of it."""

    left: int
    top: int
    width: int
    height: int
    shape: Shape

    @property
    def crop(self) -> tuple[int, int]:
        """(top, left) after resizing, as SDXL is told it."""
        down, across = self.shape.height / self.height, self.shape.width / self.width
        return round(self.top * down), round(self.left * across)

    @property
    def enlarges(self) -> bool:
        """Whether there are fewer pixels than the training picture has."""
        return self.width < self.shape.width or self.height < self.shape.height


def shapes_of(
    resolution: int, *, step: int | None = None, max_aspect_ratio: float = 1.0
) -> tuple[Shape, ...]:
    """The square alone without `step`, or it and all buckets, sorted.

    For every width that is a multiple of `step` the greatest height is taken that is one too and
    keeps the area; ratios above the limit are left out, and so are shapes that fit into another.
    """
    square = Shape(resolution, resolution)
    if step is None:
        return (square,)
    found, area = {square}, resolution**2
    for across in range(step, area // step + 1, step):
        down = area // across // step * step
        if down and max(across, down) <= max_aspect_ratio * min(across, down):
            found |= {Shape(down, across), Shape(across, down)}
    return tuple(sorted(shape for shape in found if not _fits_into_another(shape, found)))


def cut_of(height: int, width: int, shapes: tuple[Shape, ...]) -> Cut:
    """The centre cut of an upright picture for the shape whose ratio is nearest to its own."""
    ratio = math.log(width / height)
    shape = min(
        shapes,
        key=lambda s: (abs(math.log(s.width / s.height) - ratio), -s.height * s.width, s),
    )
    # The longest cut of just that ratio; with an odd margin the smaller half is left or above.
    across = min(width, max(1, height * shape.width // shape.height))
    down = min(height, max(1, width * shape.height // shape.width))
    return Cut((width - across) // 2, (height - down) // 2, across, down, shape)


def _fits_into_another(shape: Shape, others: set[Shape]) -> bool:
    return any(
        shape != other and shape.height <= other.height and shape.width <= other.width
        for other in others
    )
