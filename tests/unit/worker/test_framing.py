"""What is kept of a picture: faces, subjects and detail; to the pixel, and the same every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kubebooth_trainer.prepare.decoder import Decoded, Decoder, Verdict
from kubebooth_trainer.prepare.focus import find
from kubebooth_trainer.prepare.framing import Framing
from kubebooth_trainer.prepare.render import Refused, render
from kubebooth_trainer.prepare.shapes import Shape, shapes_of
from PIL import Image
from skimage import data

SMART = Framing("Smart")
SQUARE = (Shape(128, 128),)


@dataclass(frozen=True)
class Labelled:
    """A picture and the box of its subject: left, top, right, bottom in pixels."""

    name: str
    image: Image.Image
    box: tuple[int, int, int, int]


def textured(width: int, height: int, seed: int) -> Image.Image:
    """Grass, gravel or brick, dimmed, as a background."""
    tile = (data.grass, data.gravel, data.brick)[seed % 3]()
    rows = np.tile(tile, (height // tile.shape[0] + 1, width // tile.shape[1] + 1))
    grey = rows[:height, :width] // 2 + 60
    return Image.fromarray(np.stack([grey, grey, grey], axis=2).astype(np.uint8))


SUBJECTS = {"face": (55, 55, 150, 190), "cat": (40, 40, 240, 250), "ball": (0, 0, 120, 120)}
"""What is looked for, and its box in the pasted piece."""
CASES = [
    (name, size, place)
    for size in ((900, 400), (400, 900), (1200, 500), (520, 940))
    for place in (0.04, 0.5, 0.96)
    for name in SUBJECTS
]


def piece(name: str) -> tuple[Image.Image, Image.Image | None]:
    """A subject and its mask."""
    if name == "face":
        return Image.fromarray(data.astronaut()).crop((130, 0, 330, 270)), None
    if name == "cat":
        return Image.fromarray(data.chelsea()).crop((60, 10, 340, 290)), None
    rows, columns = np.mgrid[:120, :120]
    inside = (rows - 60) ** 2 + (columns - 60) ** 2 < 58**2
    return Image.new("RGB", (120, 120), (230, 90, 30)), Image.fromarray(np.uint8(inside * 255))


def labelled(name: str, size: tuple[int, int], place: float) -> Labelled:
    """A subject at a place of a wide or tall textured picture."""
    width, height = size
    scene, (subject, mask) = textured(width, height, width), piece(name)
    left, top = round((width - subject.width) * place), round((height - subject.height) * place)
    scene.paste(subject, (left, top), mask)
    box = SUBJECTS[name]
    moved = (left + box[0], top + box[1], left + box[2], top + box[3])
    return Labelled(f"{name} {width}x{height} at {place}", scene, moved)


def kept(one: Labelled, folder: Path, framing: Framing) -> float:
    """Share of the labelled box that is inside the crop."""
    path = folder / "picture.png"
    one.image.save(path)
    cut = render(path, shapes=SQUARE, min_edge=1, framing=framing).cut
    left, top, right, bottom = one.box
    across = min(right, cut.left + cut.width) - max(left, cut.left)
    down = min(bottom, cut.top + cut.height) - max(top, cut.top)
    return max(0, across) * max(0, down) / ((right - left) * (bottom - top))


@pytest.mark.parametrize(("name", "size", "place"), CASES)
def test_a_subject_at_the_edge_is_kept_whole(
    name: str, size: tuple[int, int], place: float, tmp_path: Path
) -> None:
    assert kept(labelled(name, size, place), tmp_path, SMART) > 0.97


def test_faces_go_before_what_is_colourful(tmp_path: Path) -> None:
    face = Image.fromarray(data.astronaut()).crop((130, 0, 330, 270))
    scene = textured(1200, 300, 1)
    scene.paste((250, 40, 20), (1000, 50, 1190, 250))
    scene.paste(face, (20, 10))
    one = Labelled("face and box", scene, (75, 65, 170, 200))
    assert kept(one, tmp_path, SMART) == 1.0
    assert kept(one, tmp_path, Framing("Smart", "Subject")) == 0.0


@pytest.mark.parametrize(
    ("picture", "kind"),
    [(data.astronaut(), "Face"), (data.coffee(), "Subject")],
    ids=["astronaut", "coffee"],
)
def test_real_photos_are_understood(picture: np.ndarray, kind: str) -> None:
    found = find(Image.fromarray(picture))
    assert found.kind == kind


def test_a_picture_without_anything_is_cropped_to_its_centre(tmp_path: Path) -> None:
    one = Labelled("plain", Image.new("RGB", (400, 100), (90, 90, 90)), (150, 0, 250, 100))
    assert kept(one, tmp_path, SMART) == 1.0


@pytest.mark.parametrize("focus", ["Auto", "Face", "Subject", "Edges"])
def test_the_same_pixels_give_the_same_crop(focus: str, tmp_path: Path) -> None:
    framing = Framing("Smart", focus)  # type: ignore[arg-type]
    Image.fromarray(data.chelsea()).save(tmp_path / "a.png")
    made = [render(tmp_path / "a.png", shapes=SQUARE, min_edge=1, framing=framing) for _ in "abc"]
    assert len({one.image.tobytes() for one in made}) == 1
    assert len({one.cut for one in made}) == 1


@pytest.mark.parametrize("crop", ["Center", "Smart"])
@pytest.mark.parametrize("size", [(201, 333), (333, 200), (97, 500), (1025, 1023), (5801, 211)])
def test_no_crop_has_an_edge_that_is_not_of_the_picture(
    crop: str, size: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("RGB", size, "white").save(tmp_path / "a.png")
    framing = Framing(crop)  # type: ignore[arg-type]
    for shapes in (SQUARE, shapes_of(64, step=8, max_aspect_ratio=3.0)):
        made = render(tmp_path / "a.png", shapes=shapes, min_edge=1, framing=framing)
        assert made.image.getextrema() == ((255, 255),) * 3
        assert 0 <= made.cut.left <= size[0] - made.cut.width
        assert 0 <= made.cut.top <= size[1] - made.cut.height


def test_padding_keeps_all_of_a_picture_on_the_colour_of_its_border(tmp_path: Path) -> None:
    picture = Image.new("RGB", (200, 100), (10, 200, 30))
    picture.paste((255, 255, 255), (50, 25, 150, 75))
    picture.save(tmp_path / "a.png")
    made = render(tmp_path / "a.png", shapes=SQUARE, min_edge=1, framing=Framing("Pad"))
    assert made.image.size == (128, 128)
    assert made.image.getpixel((0, 0)) == made.image.getpixel((0, 64)) == (10, 200, 30)
    assert made.image.getpixel((64, 64)) == (255, 255, 255)
    assert (made.cut.width, made.cut.height) == (200, 100)


def test_without_cropping_another_shape_is_refused_with_the_cure(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "square.png")
    none = Framing("None")
    with pytest.raises(Refused, match=r"200x100 pixels, not of the shape 128x128.*Smart"):
        render(tmp_path / "wide.png", shapes=SQUARE, min_edge=1, framing=none)
    made = render(tmp_path / "square.png", shapes=SQUARE, min_edge=1, framing=none)
    assert made.image.size == (128, 128)


def test_the_bounded_child_looks_for_subjects_too(tmp_path: Path) -> None:
    scene = textured(1200, 400, 0)
    scene.paste(Image.fromarray(data.astronaut()).crop((130, 0, 330, 270)), (980, 60))
    scene.save(tmp_path / "a.png")
    with Decoder(scratch=tmp_path, framing=SMART) as decoder:
        made = decoder.decode(tmp_path / "a.png", tmp_path / "b.png", shapes=SQUARE, min_edge=64)
        assert isinstance(made, Decoded)
        assert made.crop[1] > 200
        large = Image.new("RGB", (9000, 9000), (1, 2, 3))
        large.save(tmp_path / "large.jpg")
        big = decoder.decode(tmp_path / "large.jpg", tmp_path / "c.png", shapes=SQUARE, min_edge=64)
        assert not isinstance(big, Verdict)
