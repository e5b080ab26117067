"""Reads a prepared snapshot: square RGB pictures and the prompt of each.

The file `dataset.json` and the pictures were published by the prepare worker and verified against
their manifest; they are checked again as if anybody had written them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kubebooth_api.artifacts import RelativePath
from kubebooth_api.door import Door, explain
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError

from kubebooth_trainer.errors import DataError

DATASET = "dataset.json"
MAX_PIXELS = 2048 * 2048


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


class SnapshotFile(_Read):
    """The content of `dataset.json`."""

    version: Literal[1]
    """Version of this format."""
    resolution: int
    """Edge of all pictures in pixels."""
    concepts: Annotated[tuple[SnapshotConcept, ...], Field(min_length=1)]
    """Subjects."""
    images: Annotated[tuple[SnapshotImage, ...], Field(min_length=1)]
    """Pictures."""


@dataclass(frozen=True)
class Picture:
    """One picture to train on."""

    path: Path
    prompt: str
    name: str
    """What to call it towards the user."""
    repeats: int = 1


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
    pictures = []
    for image in parsed.images:
        if {".", ".."} & set(image.file.split("/")):
            raise DataError(f"dataset: file {image.file!r} leaves the snapshot's folder")
        if image.concept not in concepts:
            raise DataError(f"dataset: {image.file} belongs to no concept of {DATASET}")
        pictures.append(
            Picture(
                folder / image.file,
                image.prompt,
                image.source or image.file,
                concepts[image.concept].repeats,
            )
        )
    return Snapshot(
        tuple(pictures),
        tuple(dict.fromkeys(_calling(concept, parsed.images) for concept in parsed.concepts)),
        tuple(dict.fromkeys(c.class_name for c in parsed.concepts if c.class_name)),
    )


def open_square(path: Path, *, name: str, resolution: int) -> Image.Image:
    """A PNG as RGB of exactly the training size. Raises `DataError` that names it."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (resolution, resolution) or resolution**2 > MAX_PIXELS:
                raise DataError(
                    f"{name}: {image.size[0]}x{image.size[1]} px instead of {resolution} px square;"
                    " prepare the pictures again"
                )
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a sound PNG ({error}); prepare the pictures again") from error


def _calling(concept: SnapshotConcept, images: Sequence[SnapshotImage]) -> str:
    """The prompt that calls a concept: that of pictures without caption, else token and class."""
    for image in images:
        if image.concept == concept.name and not image.caption:
            return image.prompt
    return " ".join(word for word in (concept.token, concept.class_name) if word)
