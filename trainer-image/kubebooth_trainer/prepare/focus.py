"""Where the subject of a picture is: faces, else what stands out, else where there is detail.

The same pixels always give the same answer. It works on a small copy, so its cost hardly depends
on the picture's size. It must not know shapes, files or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Focus = Literal["Auto", "Face", "Subject", "Edges"]
Map = NDArray[np.float64]

EDGE = 256
"""Longest edge of the copy that maps are made of, in pixels."""
FACE_EDGES = (192, 480)
"""Shorter edge of the copy that faces are looked for in, and most of the longer, in pixels."""
FACE_STEP = 1.15
"""Ratio between the sizes of faces that are looked for."""
SMALLEST_FACE = 0.06
"""Edge of the smallest face, as a share of the copy's shorter edge."""
CASCADES = ("haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml")
NEIGHBOURS = 5
CONCENTRATED = 1.6
"""How much more of the importance the best square of half the area must hold than a random one for
something to count as standing out."""
HAIR, CHIN = 0.45, 0.25
"""What belongs to a face above and below the detected box, as shares of its height."""


@dataclass(frozen=True)
class Box:
    """A rectangle in shares of the picture's width and height."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Share of the picture."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Found:
    """How important each part of a picture is."""

    importance: Map
    """[h, w], non-negative, of a small copy."""
    kind: Literal["Face", "Subject", "Edges"]
    """What decided."""
    boxes: tuple[Box, ...] = ()
    """Faces, the largest first."""


def find(image: Image.Image, *, focus: Focus = "Auto") -> Found:
    """What to keep of an upright RGB picture. `Auto` tries faces, then the subject, then edges."""
    small = _small(image, EDGE)
    if focus in ("Auto", "Face"):
        boxes = faces(image)
        if boxes:
            return Found(_face_map(boxes, small.shape[0], small.shape[1]), "Face", boxes)
    if focus in ("Auto", "Subject", "Face"):
        standing_out = saliency(small)
        if focus != "Auto" or concentration(standing_out) >= CONCENTRATED:
            return Found(standing_out, "Subject")
    return Found(detail(small), "Edges")


def best_offset(
    found: Found, *, width: int, height: int, across: int, down: int
) -> tuple[int, int]:
    """(left, top) in whole pixels of the cut of `across` x `down` out of `width` x `height` that
    holds most of what is important; of equals the one nearest to the centre."""
    rows, columns = found.importance.shape
    left = _best(found.importance.sum(axis=0), columns, width, across)
    top = _best(found.importance.sum(axis=1), rows, height, down)
    return left, top


def faces(image: Image.Image) -> tuple[Box, ...]:
    """Faces with hair and chin, the largest first."""
    grey = np.asarray(cv2.equalizeHist(_grey(_small(image, _face_edge(image)))), dtype=np.uint8)
    height, width = grey.shape
    least = max(16, round(SMALLEST_FACE * min(height, width)))
    found: list[tuple[int, int, int, int]] = []
    frontal, profile = (_cascade(name) for name in CASCADES)
    for x, y, w, h in _detected(frontal, grey, least):
        found.append((x, y, w, h))
    if not found:
        found += _detected(profile, grey, least)
        mirrored = _detected(profile, np.ascontiguousarray(grey[:, ::-1]), least)
        found += [(width - x - w, y, w, h) for x, y, w, h in mirrored]
    boxes = [
        Box(
            max(0.0, x / width),
            max(0.0, (y - HAIR * h) / height),
            min(1.0, (x + w) / width),
            min(1.0, (y + h + CHIN * h) / height),
        )
        for x, y, w, h in found
    ]
    return tuple(sorted(boxes, key=lambda box: (-box.area, box.left, box.top)))


def _face_edge(image: Image.Image) -> int:
    """Longest edge of the copy for faces: by the shorter one, as panoramas have faces too."""
    shorter, longest = FACE_EDGES
    return min(longest, round(shorter * max(image.size) / min(image.size)))


def saliency(small: NDArray[np.uint8]) -> Map:
    """How much each pixel differs from the picture as a whole, [h, w].

    "Frequency-tuned salient region detection" (2009): distance in Lab colour between a slightly
    blurred pixel and the mean; here the mean is the border's too, as subjects seldom fill it.
    """
    lab = cv2.cvtColor(cv2.GaussianBlur(small, (5, 5), 0), cv2.COLOR_RGB2LAB).astype(np.float64)
    rim = max(1, min(lab.shape[:2]) // 16)
    border = np.concatenate(
        [
            lab[:rim].reshape(-1, 3),
            lab[-rim:].reshape(-1, 3),
            lab[:, :rim].reshape(-1, 3),
            lab[:, -rim:].reshape(-1, 3),
        ]
    )
    whole = np.linalg.norm(lab - lab.reshape(-1, 3).mean(axis=0), axis=2)
    rimmed = np.linalg.norm(lab - np.median(border, axis=0), axis=2)
    both = whole * rimmed
    weighed: Map = np.square(both / max(float(both.max()), 1e-9))
    return weighed


def detail(small: NDArray[np.uint8]) -> Map:
    """Strength of edges, [h, w]; uniform pictures are important everywhere alike."""
    grey = _grey(small).astype(np.float64)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    strength: Map = np.hypot(across, down) + 1e-6
    return strength


def concentration(importance: Map) -> float:
    """How much more the best part of a quarter of the area holds than an average one."""
    rows, columns = importance.shape
    down, across = max(1, rows // 2), max(1, columns // 2)
    sums = np.pad(importance.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    held = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across]
    held = held + sums[:-down, :-across]
    average = float(importance.sum()) * (down * across) / (rows * columns)
    return float(held.max() / max(average, 1e-12))


def _face_map(boxes: tuple[Box, ...], rows: int, columns: int) -> Map:
    """Faces weigh by their area; between equal cuts the centre of the largest decides."""
    importance = np.zeros((rows, columns))
    for box in boxes:
        top, bottom = int(box.top * rows), max(int(box.top * rows) + 1, round(box.bottom * rows))
        left, right = (
            int(box.left * columns),
            max(int(box.left * columns) + 1, round(box.right * columns)),
        )
        importance[top:bottom, left:right] += 1.0
    return importance


def _best(profile: NDArray[np.float64], cells: int, pixels: int, taken: int) -> int:
    """Offset in pixels of the stretch of `taken` that holds most of a profile of `cells`."""
    room = pixels - taken
    if room <= 0:
        return 0
    cumulated = np.concatenate([[0.0], profile.cumsum()])
    offsets = np.unique(np.linspace(0, room, min(room, 4 * cells) + 1).round().astype(int))
    places = np.arange(cells + 1) * (pixels / cells)
    held = np.interp(offsets + taken, places, cumulated) - np.interp(offsets, places, cumulated)
    best = held >= held.max() * (1 - 1e-9)
    middle = _middle(offsets[best])
    return int(min(offsets[best], key=lambda offset: (abs(offset - middle), offset)))


def _middle(offsets: NDArray[np.int_]) -> float:
    """Middle of the first unbroken run of equally good offsets: what is kept stands in the
    centre of the cut."""
    steps = np.diff(offsets)
    widest = max(1, int(np.median(steps))) * 2 if len(steps) else 1
    breaks = np.flatnonzero(steps > widest)
    last = breaks[0] if len(breaks) else len(offsets) - 1
    return float(offsets[0] + offsets[last]) / 2


def _detected(
    cascade: cv2.CascadeClassifier, grey: NDArray[np.uint8], least: int
) -> list[tuple[int, int, int, int]]:
    rows = cascade.detectMultiScale(
        grey, scaleFactor=FACE_STEP, minNeighbors=NEIGHBOURS, minSize=(least, least)
    )
    return [(int(x), int(y), int(w), int(h)) for x, y, w, h in rows]


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    # One thread: the order in which several find the same face would be up to chance.
    cv2.setNumThreads(1)
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / name))


def _small(image: Image.Image, edge: int) -> NDArray[np.uint8]:
    copy = image.convert("RGB")
    scale = min(1.0, edge / max(copy.size))
    size = (max(8, round(copy.width * scale)), max(8, round(copy.height * scale)))
    factor = max(1, int(1 / scale) // 2)
    if factor > 1:
        copy = copy.reduce(factor)
    return np.asarray(copy.resize(size, Image.Resampling.BILINEAR))


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
