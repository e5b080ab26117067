"""Writes the immutable snapshot that training reads: pictures, prompts, contact sheet, manifest.

Files of a snapshot:

    images/<NNNN>.png   RGB pictures: squares, or of several shapes with preprocess.buckets
    dataset.json        {"version": 2, "resolution", "concepts": [{"name", "token", "className",
                        "repeats"}], "images": [{"file", "sha256", "concept", "prompt", "caption",
                        "source", "geometry": {"original", "crop", "target"}}]}, where geometry
                        holds pairs of pixels, vertical first
    contact-sheet.png   the pictures with their prompts, for people
    manifest.json       written last

Equal pictures and prompts give equal bytes, so equal digests: a second publish uploads nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import FileEntry, Manifest, files_digest
from kubebooth_api.digests import canonical_json
from kubebooth_api.runs import PrepareRun
from kubebooth_store import Store, publish_files, read_manifest

from kubebooth_trainer.prepare.pictures import Picture
from kubebooth_trainer.prepare.sheet import Thumb, draw

VERSION = 2
DATASET = "dataset.json"
SHEET = "contact-sheet.png"


def publish_snapshot(
    run: PrepareRun, pictures: Sequence[Picture], *, store: Store
) -> tuple[str, Manifest]:
    """Publish the pictures; prefix and manifest of the snapshot. Raises the store's errors."""
    files: dict[str, Path | bytes] = {
        _name(index): picture.path for index, picture in enumerate(pictures)
    }
    told = canonical_json(describe(run, pictures))
    sheet = draw(
        [_thumb(picture) for picture in pictures],
        title=_title(run),
        subtitle=_subtitle(run, pictures),
    )
    rows = [
        FileEntry(path=_name(index), size=picture.size, sha256=picture.sha256)
        for index, picture in enumerate(pictures)
    ]
    for path, data in ((DATASET, told), (SHEET, sheet)):
        files[path] = data
        rows.append(FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    digest = files_digest(tuple(rows))
    session = layout.session(run.session.namespace, run.session.name)
    prefix = layout.dataset(session, digest)
    published = read_manifest(store, prefix)
    if published is not None and published.digest == digest:
        return prefix, published
    metadata = {"images": len(pictures), "resolution": run.resolution}
    return prefix, publish_files(store, prefix, files, kind="dataset", metadata=metadata)


def describe(run: PrepareRun, pictures: Sequence[Picture]) -> dict[str, Any]:
    """The content of `dataset.json`."""
    return {
        "version": VERSION,
        "resolution": run.resolution,
        "concepts": [
            {
                "name": concept.name,
                "token": concept.token,
                "className": concept.class_name,
                "repeats": concept.repeats,
            }
            for concept in sorted(run.concepts, key=lambda concept: concept.name)
        ],
        "images": [
            {
                "file": _name(index),
                "sha256": picture.sha256,
                "concept": picture.concept,
                "prompt": picture.prompt,
                "caption": picture.captioned,
                "source": picture.source,
                "geometry": {
                    "original": list(picture.original),
                    "crop": list(picture.crop),
                    "target": [picture.target.height, picture.target.width],
                },
            }
            for index, picture in enumerate(pictures)
        ],
    }


def _name(index: int) -> str:
    return f"images/{index:04d}.png"


def _title(run: PrepareRun) -> str:
    concepts = sorted(run.concepts, key=lambda concept: concept.name)
    return ", ".join(
        " ".join(part for part in (concept.token, concept.class_name or "") if part)
        for concept in concepts
    )


def _subtitle(run: PrepareRun, pictures: Sequence[Picture]) -> str:
    captioned = sum(picture.captioned for picture in pictures)
    shapes = len({picture.target for picture in pictures})
    cut = f" in {shapes} shapes" if shapes > 1 else ""
    return (
        f"{len(pictures)} pictures at {run.resolution} px{cut} · {captioned} with a caption (blue),"
        f" {len(pictures) - captioned} with the instance prompt"
    )


def _thumb(picture: Picture) -> Thumb:
    return Thumb(picture.path, picture.source, picture.prompt, picture.captioned)
