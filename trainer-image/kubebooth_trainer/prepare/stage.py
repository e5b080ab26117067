"""The prepare stage as a whole: check the model, check the pictures, publish the snapshot."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from kubebooth_api.artifacts import Artifact
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import PrepareRun
from kubebooth_api.v1alpha1.session import DatasetStatus
from kubebooth_store import Store

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.prepare.base_model import verify
from kubebooth_trainer.prepare.given import (
    CLASS_IMAGES,
    CONCEPT_IMAGES,
    Given,
    check_given,
    find_given,
    publish_given,
    refuse_none,
)
from kubebooth_trainer.prepare.pictures import Picture, Share, check_pictures
from kubebooth_trainer.prepare.shapes import Shape, shapes_of
from kubebooth_trainer.prepare.snapshot import SHEET, publish_snapshot
from kubebooth_trainer.prepare.sources import Found, find
from kubebooth_trainer.prepare.verdicts import Verdicts, listed
from kubebooth_trainer.reporter import Reporter

_LOG = logging.getLogger(__name__)
_MESSAGE_ROOM = 700
_ABSENT_CURE = (
    "captions come from files, and pictures are not judged by a model: leave it at its default"
)
_RESOLUTIONS = range(16, 2049, 8)


@dataclass(frozen=True)
class PrepareOutcome:
    """What a prepare stage made true."""

    dataset: DatasetStatus
    """The published snapshot."""
    base_model: Artifact
    """The verified base model."""
    message: str
    """One sentence for people."""
    class_images: Artifact | None = None
    """The published snapshot of given class images."""
    concept_images: Artifact | None = None
    """The published snapshot of the pictures of the concept stage."""


@dataclass(frozen=True)
class _Checked:
    """Everything that may be published."""

    pictures: list[Picture]
    given: tuple[tuple[Given, list[Picture]], ...]


def prepare(run: PrepareRun, *, store: Store, reporter: Reporter, workdir: Path) -> PrepareOutcome:
    """Verify the base model and all pictures, then publish the snapshot.

    Raises `ConfigurationError`, `DataError`, `Preempted`, `InternalFault` and the store's errors.
    """
    _check_supported(run)
    base_model = verify(run, store)
    verdicts = Verdicts()
    found = find(run, store, verdicts)
    if not found.pictures and not verdicts.left_out:
        raise _no_pictures(run, store)
    given = find_given(run, store, verdicts)
    folder = workdir / "prepare"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        checked = _check(
            run, found, given, store=store, reporter=reporter, verdicts=verdicts, folder=folder
        )
        _log(verdicts, checked.pictures)
        _judge(run, found, checked, verdicts)
        prefix, manifest = publish_snapshot(run, checked.pictures, store=store)
        others = {
            one.name: publish_given(one, pictures, store=store) for one, pictures in checked.given
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    dataset = DatasetStatus(
        digest=manifest.digest,
        uri=store.uri_of(prefix),
        images=len(checked.pictures),
        captioned=sum(picture.captioned for picture in checked.pictures),
        rejected=len(verdicts.left_out),
        worst=verdicts.worst(),
        review_uri=store.uri_of(f"{prefix}/{SHEET}"),
        size=manifest.size_bytes,
    )
    return PrepareOutcome(
        dataset,
        base_model,
        _summary(dataset, checked, verdicts),
        class_images=others.get(CLASS_IMAGES),
        concept_images=others.get(CONCEPT_IMAGES),
    )


def _check(
    run: PrepareRun,
    found: Found,
    given: tuple[Given, ...],
    *,
    store: Store,
    reporter: Reporter,
    verdicts: Verdicts,
    folder: Path,
) -> _Checked:
    """Check the dataset, then what is given beside it; class images in the dataset's shapes."""
    shapes = _shapes(run)
    total = len(found.pictures) + sum(len(one.found.pictures) for one in given)
    pictures = check_pictures(
        run, found, store=store, reporter=reporter, verdicts=verdicts, folder=folder / "dataset",
        shapes=shapes, share=Share(0, total),
    )  # fmt: skip
    taken = tuple(sorted({picture.target for picture in pictures})) or shapes
    before, checked = len(found.pictures), []
    for one in given:
        theirs = check_given(
            one, store=store, reporter=reporter, verdicts=verdicts, folder=folder / one.name,
            shapes=taken if one.name == CLASS_IMAGES else shapes, share=Share(before, total),
        )  # fmt: skip
        checked.append((one, theirs))
        before += len(one.found.pictures)
    return _Checked(pictures, tuple(checked))


def _shapes(run: PrepareRun) -> tuple[Shape, ...]:
    buckets = run.preprocess.buckets
    if buckets is None:
        return shapes_of(run.resolution)
    if BASE_MODELS[run.base_model.variant].family == "flux" and buckets.step % 16:
        raise ConfigurationError(
            f"preprocess.buckets.step: {buckets.step} must be a multiple of 16 for"
            f" {run.base_model.variant}, which packs latents two by two; use 64"
        )
    return shapes_of(run.resolution, step=buckets.step, max_aspect_ratio=buckets.max_aspect_ratio)


def _check_supported(run: PrepareRun) -> None:
    if run.resolution not in _RESOLUTIONS:
        raise ConfigurationError(
            f"resolution: {run.resolution} must be a multiple of 8 from 16 to 2048 pixels"
        )
    for field, wrong in _absent(run).items():
        if wrong:
            raise ConfigurationError(f"{field} is not in this version; {_ABSENT_CURE}")
    if len({concept.name for concept in run.concepts}) != len(run.concepts):
        raise ConfigurationError("concepts: two concepts have the same name; rename one")
    if not run.concepts:
        raise ConfigurationError("concepts: name at least one subject")
    if len(run.concepts) > 1 and not all(concept.sources for concept in run.concepts):
        raise ConfigurationError(
            "concepts: uploaded pictures belong to a session of one concept; with several give"
            " each its concepts[].sources"
        )


def _absent(run: PrepareRun) -> dict[str, bool]:
    """Fields that this version cannot honour → whether they ask for something."""
    preprocess, captions = run.preprocess, run.captions
    return {
        f"preprocess.blur: {preprocess.blur}": preprocess.blur in {"Exclude", "Fail"},
        "preprocess.watermarks": preprocess.watermarks != "Ignore",
        f"captions.mode: {captions.mode}": captions.mode not in {"None", "Files"},
        "gates": bool(run.gates),
        "extraction": run.extraction is not None,
    }


def _judge(run: PrepareRun, found: Found, checked: _Checked, verdicts: Verdicts) -> None:
    refused, fatal, pictures = verdicts.refused, verdicts.fatal, checked.pictures
    told = listed(verdicts.left_out, limit_characters=_MESSAGE_ROOM)
    if fatal:
        raise DataError(
            f"{_count(len(fatal), 'finding')} that must not be: {told}. Mend or remove the files,"
            " or set preprocess.duplicates or captions.lint to Warn",
            reason="BadFiles",
        )
    if refused and run.preprocess.bad_files == "Fail":
        raise DataError(
            f"{_count(len(refused), 'file')} cannot be used: {told}. Mend or remove them, or set"
            " preprocess.badFiles: Exclude to train without them",
            reason="BadFiles",
        )
    without = [
        concept.name
        for concept in run.concepts
        if not any(picture.concept == concept.name for picture in pictures)
    ]
    short = len(pictures) < run.preprocess.min_images
    if not short and not without:
        for one, theirs in checked.given:
            refuse_none(one, theirs)
        return
    what = (
        f"{_count(len(pictures), 'usable picture')} of {len(found.pictures)}, but"
        f" preprocess.minImages asks for {run.preprocess.min_images}: upload more, or lower it"
        if short
        else f"no usable picture for concept {', '.join(without[:5])}: upload some"
    )
    raise DataError(f"{what}{f'. Refused: {told}' if told else ''}", reason="TooFewPictures")


def _no_pictures(run: PrepareRun, store: Store) -> DataError:
    name = run.session.name
    where = [
        store.uri_of(source.store.key)
        for concept in run.concepts
        for source in concept.sources
        if source.store is not None
    ] or [store.uri_of(f"sessions/{run.session.namespace}/{name}/uploads")]
    return DataError(
        f"there are no pictures at {', '.join(where[:3])}; upload some:"
        f" kubebooth upload FOLDER --session {name}",
        reason="NoPictures",
    )


def _summary(dataset: DatasetStatus, checked: _Checked, verdicts: Verdicts) -> str:
    parts = [f"{_count(dataset.images, 'picture')} ready, {dataset.captioned} with a caption"]
    shapes = len({picture.target for picture in checked.pictures})
    if shapes > 1:
        parts.append(f"in {shapes} shapes")
    parts += [
        _count(len(pictures), one.name.replace("-", " ")[:-1]) for one, pictures in checked.given
    ]
    if verdicts.left_out:
        parts.append(f"{_count(len(verdicts.left_out), 'file')} left out")
    if verdicts.upscaled:
        parts.append(f"{_count(verdicts.upscaled, 'small picture')} enlarged")
    others = len(verdicts.doubtful) - verdicts.upscaled
    if others:
        parts.append(f"{_count(others, 'thing')} to look at")
    told = listed(verdicts.left_out + verdicts.doubtful, limit_characters=_MESSAGE_ROOM)
    return "; ".join(parts) + (f" ({told})" if told else "")


def _log(verdicts: Verdicts, pictures: list[Picture]) -> None:
    for verdict in verdicts.left_out:
        _LOG.warning("file refused", extra={"file": verdict.file, "reason": verdict.reason})
    for verdict in verdicts.doubtful:
        _LOG.warning("file doubtful", extra={"file": verdict.file, "reason": verdict.reason})
    _LOG.info(
        "files checked",
        extra={
            "pictures": len(pictures),
            "refused": len(verdicts.left_out),
            "doubtful": len(verdicts.doubtful),
            "litter": verdicts.litter,
        },
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
