"""Which part of an upright picture becomes the training picture: centre, subject, all, or as it is.

It must not know files or formats; how pixels are read is given to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from PIL import Image

from kubebooth_trainer.prepare.shapes import Cut, Shape, cut_of

Crop = Literal["Center", "Smart", "Pad", "None"]
Focus = Literal["Auto", "Face", "Subject", "Edges"]
PREVIEW_EDGE = 480
"""Longest edge of the copy that the subject is looked for in, in pixels."""
PREVIEW_GAP = 2.0
"""How coarsely the copy may be made: whole pixels are averaged before the fine resize."""


class NotOfTheShape(Exception):
    """With `None` a picture must have the shape already; the message says what it has."""


@dataclass(frozen=True)
class Framing:
    """How the part is chosen; `focus` is read by `Smart` only."""

    crop: Crop = "Center"
    focus: Focus = "Auto"


CENTRE = Framing()


class Upright(Protocol):
    """Reads a cut of the upright picture."""

    def __call__(self, cut: Cut, *, gap: float | None = None) -> Image.Image:
        """The cut in its shape, as RGB; with `gap` a coarser resize is enough."""


def cut_out(
    upright: Upright, height: int, width: int, *, shapes: tuple[Shape, ...], framing: Framing
) -> tuple[Image.Image, Cut]:
    """The training picture and what it was cut from. Raises `NotOfTheShape`."""
    cut = cut_of(height, width, shapes)
    if framing.crop == "Pad":
        return _padded(upright, height, width, cut.shape)
    whole = (cut.width, cut.height) == (width, height)
    if framing.crop == "None" and not whole:
        raise NotOfTheShape(f"{width}x{height} pixels, not of the shape {cut.shape.told}")
    if framing.crop == "Smart" and not whole:
        cut = _on_subject(upright, height, width, cut, framing.focus)
    return upright(cut), cut


def _on_subject(upright: Upright, height: int, width: int, cut: Cut, focus: Focus) -> Cut:
    # Only here: whoever crops to the centre need not load OpenCV.
    from kubebooth_trainer.prepare.focus import best_offset, find

    scale = min(1.0, PREVIEW_EDGE / max(height, width))
    copy = Shape(max(1, round(height * scale)), max(1, round(width * scale)))
    found = find(upright(Cut(0, 0, width, height, copy), gap=PREVIEW_GAP), focus=focus)
    left, top = best_offset(found, width=width, height=height, across=cut.width, down=cut.height)
    return replace(cut, left=left, top=top)


def _padded(upright: Upright, height: int, width: int, shape: Shape) -> tuple[Image.Image, Cut]:
    """The whole picture in the middle of the shape, on the mean colour of its border."""
    scale = min(shape.width / width, shape.height / height)
    inner = Shape(
        min(shape.height, max(1, round(height * scale))),
        min(shape.width, max(1, round(width * scale))),
    )
    picture = upright(Cut(0, 0, width, height, inner))
    canvas = Image.new("RGB", (shape.width, shape.height), _border_colour(picture))
    canvas.paste(picture, ((shape.width - inner.width) // 2, (shape.height - inner.height) // 2))
    return canvas, Cut(0, 0, width, height, shape)


def _border_colour(picture: Image.Image) -> tuple[int, int, int]:
    width, height = picture.size
    strips = [
        picture.crop(box)
        for box in (
            (0, 0, width, 1),
            (0, height - 1, width, height),
            (0, 0, 1, height),
            (width - 1, 0, width, height),
        )
    ]
    means = [strip.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) for strip in strips]
    channels = [[mean[c] for mean in means if isinstance(mean, tuple)] for c in range(3)]
    red, green, blue = (round(sum(values) / len(values)) for values in channels)
    return red, green, blue
