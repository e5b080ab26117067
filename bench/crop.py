"""Smart crops per second, and how much of a labelled subject they keep, against the notebook's way.

The peer is written after the notebook's description: scale the short side with `int()`, then look
for corners, for the window of most entropy in steps of 4 pixels, and for faces by eight cascades in
turn, and crop around the weighted mean of what was found.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from kubebooth_trainer.prepare.framing import Framing
from kubebooth_trainer.prepare.render import render
from kubebooth_trainer.prepare.shapes import Shape
from PIL import Image

from bench.report import report
from tests.unit.worker.test_framing import CASES, Labelled, labelled

SIZE, PAIRS, GOAL = 512, 3, 20.0
CASCADES = (
    ("haarcascade_eye.xml", 0.01),
    ("haarcascade_frontalface_default.xml", 0.05),
    ("haarcascade_profileface.xml", 0.05),
    ("haarcascade_frontalface_alt.xml", 0.05),
    ("haarcascade_frontalface_alt2.xml", 0.05),
    ("haarcascade_frontalface_alt_tree.xml", 0.05),
    ("haarcascade_eye_tree_eyeglasses.xml", 0.05),
    ("haarcascade_upperbody.xml", 0.05),
)
CORNERS, ENTROPY, FACES = 0.5, 0.15, 0.9
Point = tuple[float, float]


def notebook_crop(path: Path) -> tuple[float, float, float]:
    """Crop a file the notebook's way; left, top and edge of the crop in pixels of the file."""
    image = Image.open(path)
    scale = SIZE / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)))
    found = [(point, CORNERS) for point in [_corners(image)] if point]
    found += [(_entropy(image), ENTROPY)]
    found += [(point, FACES) for point in [_faces(image)] if point]
    total = sum(weight for _, weight in found)
    x = sum(point[0] * weight for point, weight in found) / total
    y = sum(point[1] * weight for point, weight in found) / total
    left = min(max(int(x) - SIZE // 2, 0), max(0, image.width - SIZE))
    top = min(max(int(y) - SIZE // 2, 0), max(0, image.height - SIZE))
    image.crop((left, top, left + SIZE, top + SIZE)).load()
    return left / scale, top / scale, SIZE / scale


def _corners(image: Image.Image) -> Point | None:
    grey = np.array(image.convert("L"))
    grey[int(0.9 * image.height) :] = 0
    least = min(grey.shape) * 0.06
    points = cv2.goodFeaturesToTrack(
        grey, maxCorners=100, qualityLevel=0.04, minDistance=least, useHarrisDetector=False
    )
    if points is None:
        return None
    flat = points.reshape(-1, 2)
    return float(flat[:, 0].mean()), float(flat[:, 1].mean())


def _entropy(image: Image.Image) -> Point:
    wide = image.width > image.height
    length = image.width if wide else image.height
    best, where = -1.0, 0
    for start in range(0, length - SIZE + 1, 4):
        box = (start, 0, start + SIZE, SIZE) if wide else (0, start, SIZE, start + SIZE)
        bands = np.asarray(image.crop(box).convert("1"), dtype=np.uint8)
        counts, _ = np.histogram(bands, bins=range(256))
        counts = counts[counts > 0]
        value = float(-np.log2(counts / counts.sum()).sum())
        if value > best:
            best, where = value, start
    middle = where + SIZE / 2
    return (middle, image.height / 2) if wide else (image.width / 2, middle)


def _faces(image: Image.Image) -> Point | None:
    grey = cv2.cvtColor(np.array(image.convert("RGB")), cv2.COLOR_BGR2GRAY)
    folder = Path(cv2.__file__).parent / "data"
    for name, share in CASCADES:
        least = int(min(image.size) * share)
        rows = cv2.CascadeClassifier(str(folder / name)).detectMultiScale(
            grey, scaleFactor=1.1, minNeighbors=7, minSize=(least, least)
        )
        if len(rows):
            return (
                float(np.mean([x + w / 2 for x, _, w, _ in rows])),
                float(np.mean([y + h / 2 for _, y, _, h in rows])),
            )
    return None


def our_crop(path: Path) -> tuple[float, float, float]:
    """Crop a file our way; the same answer."""
    made = render(path, shapes=(Shape(SIZE, SIZE),), min_edge=1, framing=Framing("Smart"))
    return made.cut.left, made.cut.top, made.cut.width


def kept(one: Labelled, cut: tuple[float, float, float]) -> float:
    """Share of the labelled box inside a crop."""
    left, top, right, bottom = one.box
    across = min(right, cut[0] + cut[2]) - max(left, cut[0])
    down = min(bottom, cut[1] + cut[2]) - max(top, cut[1])
    return max(0.0, across) * max(0.0, down) / ((right - left) * (bottom - top))


def timed(
    crop: Callable[[Path], tuple[float, float, float]], files: list[tuple[Path, Labelled]]
) -> tuple[float, float, int]:
    """CPU seconds a picture, mean share kept, and how many subjects are whole."""
    start = time.process_time()
    shares = [kept(one, crop(path)) for path, one in files]
    spent = time.process_time() - start
    return spent / len(files), statistics.mean(shares), sum(share > 0.97 for share in shares)


def main() -> int:
    """Crop the labelled pictures both ways."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = []
        for number, case in enumerate(CASES[::3] + CASES[1::9]):
            one = labelled(*case)
            path = Path(temporary) / f"{number:02d}.png"
            one.image.save(path)
            files.append((path, one))
        our_crop(files[0][0])
        ratios = []
        for pair in range(PAIRS):
            theirs, ours = timed(notebook_crop, files), timed(our_crop, files)
            ratios.append(theirs[0] / ours[0])
            print(
                f"pair {pair + 1}: notebook {theirs[0]:.3f} s, ours {ours[0]:.4f} s a picture;"
                f" subject kept {theirs[1]:.2f} and {ours[1]:.2f}, whole {theirs[2]} and {ours[2]}"
                f" of {len(files)}",
                flush=True,
            )
    value = statistics.median(ratios)
    better = ours[1] > theirs[1] and ours[2] > theirs[2]
    return report(
        bench="crop",
        value=value,
        unit="x pictures per CPU second",
        against="the notebook's smart crop",
        goal=f">= {GOAL:.0f} and more of the subjects kept",
        ok=value >= GOAL and better,
    )


if __name__ == "__main__":
    sys.exit(main())
