"""Reads a prepared snapshot: RGB pictures, how each was cut out, and the prompt of each.

The file `dataset.json` and the pictures were published by the prepare worker and verified against
their manifest; they are checked again as if anybody had written them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kubebooth_api.artifacts import RelativePath
from kubebooth_api.door import Door, explain
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families.door import Geometry
from kubebooth_trainer.train import draws

DATASET = "dataset.json"
MAX_PIXELS = 2048 * 2048
MAX_FILE_BYTES = 64 * 1024 * 1024
_AGAIN = "prepare the pictures again"
_Edge = Annotated[int, Field(ge=1, le=1_000_000)]
_Offset = Annotated[int, Field(ge=0, le=1_000_000)]


class _Read(Door):
    model_config = ConfigDict(extra="ignore")


class SnapshotConcept(_Read):
    """A subject of the snapshot."""

    name: str
    """Name of the concept."""
    token: str
    """Rare word that calls the subject."""
    class_name: str | None = None
    """Ordinary word for what it is."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each picture counts in one pass."""


class SnapshotGeometry(_Read):
    """How a picture was cut out of the user's; heights and widths in pixels."""

    original: tuple[_Edge, _Edge]
    """(height, width) of the upright picture as it came."""
    crop: tuple[_Offset, _Offset]
    """(top, left) of the cut after resizing."""
    target: tuple[_Edge, _Edge]
    """(height, width) of the picture in the snapshot."""


class SnapshotImage(_Read):
    """A picture of the snapshot."""

    file: RelativePath
    """Path below the snapshot's folder."""
    concept: str
    """Name of its concept."""
    prompt: str
    """Effective prompt."""
    caption: bool = False
    """Whether the prompt comes from a caption of its own."""
    source: str = ""
    """File name as the user knows it."""
    geometry: SnapshotGeometry | None = None
    """How it was cut out; absent in version 1, where every picture is a square."""


class SnapshotFile(_Read):
    """The content of `dataset.json`."""

    version: Literal[1, 2]
    """Version of this format; the second tells geometry and has other shapes than squares."""
    resolution: int
    """Edge in pixels of a square of the area that all pictures have at most."""
    concepts: Annotated[tuple[SnapshotConcept, ...], Field(min_length=1)]
    """Subjects."""
    images: Annotated[tuple[SnapshotImage, ...], Field(min_length=1)]
    """Pictures."""


@dataclass(frozen=True)
class Picture:
    """One picture to train on."""

    path: Path
    prompt: str
    """Effective prompt; empty where a class image takes the class prompt."""
    name: str
    """What to call it towards the user."""
    geometry: Geometry
    concept: str = ""
    """Name of its concept."""
    repeats: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.geometry.target

    def read(self) -> bytes:
        """The bytes of its file. Raises `DataError`."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error}); {_AGAIN}") from error
        if len(data) > MAX_FILE_BYTES:
            raise DataError(f"{self.name}: has more than {MAX_FILE_BYTES} bytes; {_AGAIN}")
        return data


@dataclass(frozen=True)
class Snapshot:
    """The pictures to train on, and the prompts that call each subject."""

    pictures: tuple[Picture, ...]
    instance_prompts: tuple[str, ...]
    class_names: tuple[str, ...]


def read_snapshot(folder: Path, *, resolution: int) -> Snapshot:
    """Read a fetched snapshot. Raises `DataError` that names the file."""
    try:
        parsed = SnapshotFile.model_validate_json((folder / DATASET).read_bytes())
    except OSError as error:
        raise DataError(f"dataset: {DATASET} is missing; prepare the pictures again") from error
    except ValidationError as error:
        told = explain(error, DATASET)
        raise DataError(f"dataset: {told}; prepare the pictures again") from error
    if parsed.resolution != resolution:
        raise DataError(
            f"dataset: pictures are {parsed.resolution} px, training asks for {resolution} px;"
            " prepare the pictures again"
        )
    concepts = {concept.name: concept for concept in parsed.concepts}
    pictures = tuple(
        _picture(folder, image, concepts, resolution=resolution) for image in parsed.images
    )
    return Snapshot(
        pictures,
        tuple(dict.fromkeys(_calling(concept, parsed.images) for concept in parsed.concepts)),
        tuple(dict.fromkeys(c.class_name for c in parsed.concepts if c.class_name)),
    )


def uncut(size: tuple[int, int]) -> Geometry:
    """The geometry of a picture that was made at this (height, width) and never cut."""
    return Geometry(original=size, crop=(0, 0), target=size)


def open_picture(data: bytes, *, name: str, size: tuple[int, int]) -> Image.Image:
    """A PNG as RGB of exactly the told (height, width). Raises `DataError` that names it."""
    height, width = size
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height) or width * height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.size[0]}x{image.size[1]} px instead of {width}x{height} px;"
                    f" {_AGAIN}"
                )
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a sound PNG ({error}); {_AGAIN}") from error


def hold_out(
    pictures: Sequence[Picture], *, images: int, seed: int
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """Split into pictures to train on and `images` pictures that are never trained on.

    Which ones depends on the seed and on their bytes alone, not on names or order. Every concept
    keeps a picture to train on; a twin of a held-out picture is in neither half. Raises
    `ConfigurationError` when there are too few pictures for that.
    """
    digests = [hashlib.sha256(picture.read()).hexdigest() for picture in pictures]
    ranked = sorted(set(digests), key=lambda digest: draws.key(seed, "held out", digest))
    concepts = {picture.concept for picture in pictures}
    chosen: set[str] = set()
    for digest in ranked:
        if len(chosen) == images:
            break
        tried = chosen | {digest}
        left = {p.concept for p, d in zip(pictures, digests, strict=True) if d not in tried}
        chosen = tried if left == concepts else chosen
    if len(chosen) < images:
        raise ConfigurationError(
            f"training.validation.images holds out {images} of {len(pictures)} pictures, which"
            f" leaves a concept without any; hold out at most {len(chosen)}, or upload more"
        )
    training = tuple(p for p, d in zip(pictures, digests, strict=True) if d not in chosen)
    held = {d: p for p, d in zip(reversed(pictures), reversed(digests), strict=True)}
    return training, tuple(held[digest] for digest in ranked if digest in chosen)


def _picture(
    folder: Path, image: SnapshotImage, concepts: dict[str, SnapshotConcept], *, resolution: int
) -> Picture:
    if {".", ".."} & set(image.file.split("/")):
        raise DataError(f"dataset: file {image.file!r} leaves the snapshot's folder")
    if image.concept not in concepts:
        raise DataError(f"dataset: {image.file} belongs to no concept of {DATASET}")
    told, geometry = image.geometry, uncut((resolution, resolution))
    if told is not None:
        geometry = Geometry(original=told.original, crop=told.crop, target=told.target)
    height, width = geometry.target
    if height % 8 or width % 8 or height * width > resolution**2:
        raise DataError(
            f"dataset: {image.file} is told to be {width}x{height} px, but edges are multiples of"
            f" 8 and the area is at most that of {resolution} px squared; {_AGAIN}"
        )
    return Picture(
        folder / image.file,
        image.prompt,
        image.source or image.file,
        geometry,
        image.concept,
        concepts[image.concept].repeats,
    )


def _calling(concept: SnapshotConcept, images: Sequence[SnapshotImage]) -> str:
    """The prompt that calls a concept: that of pictures without caption, else token and class."""
    for image in images:
        if image.concept == concept.name and not image.caption:
            return image.prompt
    return " ".join(word for word in (concept.token, concept.class_name) if word)
