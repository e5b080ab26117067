"""Pictures beside the dataset: given class images, and those of the concept stage.

They are found, checked and published like the dataset, but a picture without caption has an empty
prompt, and prefix, suffix, token and lints of captions are not theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import PrepareRun
from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_store import Store

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.prepare.pictures import Picture, Share, check_pictures
from kubebooth_trainer.prepare.shapes import Shape
from kubebooth_trainer.prepare.snapshot import publish_snapshot
from kubebooth_trainer.prepare.sources import Found, find
from kubebooth_trainer.prepare.verdicts import Verdicts
from kubebooth_trainer.reporter import Reporter

CLASS_IMAGES, CONCEPT_IMAGES = "class-images", "concept-images"


@dataclass(frozen=True)
class Given:
    """One kind of given pictures and what was found of them."""

    name: str
    """`CLASS_IMAGES` or `CONCEPT_IMAGES`."""
    field: str
    """Field of the session that names their places."""
    run: PrepareRun
    """The run as if they were its dataset."""
    found: Found


def find_given(run: PrepareRun, store: Store, verdicts: Verdicts) -> tuple[Given, ...]:
    """List the given pictures; nothing where none are named. Raises what `find` raises."""
    places = (
        (CLASS_IMAGES, "training.priorPreservation.sources", run.class_sources),
        (CONCEPT_IMAGES, "training.conceptStage.sources", run.concept_sources),
    )
    given = []
    for name, field, sources in places:
        if not sources:
            continue
        captions = Captions(mode="None" if run.captions.mode == "None" else "Files", lint="Ignore")
        alone = run.model_copy(
            update={
                "concepts": (Concept(name=name, token=name, sources=sources),),
                "captions": captions,
            }
        )
        found = find(alone, store, verdicts, field=field)
        given.append(Given(name, field, alone, _named(found, name.replace("-", " ")[:-1])))
    return tuple(given)


def check_given(
    given: Given,
    *,
    store: Store,
    reporter: Reporter,
    verdicts: Verdicts,
    folder: Path,
    shapes: tuple[Shape, ...],
    share: Share,
) -> list[Picture]:
    """Fetch and render them. Raises what `check_pictures` raises."""
    pictures = check_pictures(
        given.run,
        given.found,
        store=store,
        reporter=reporter,
        verdicts=verdicts,
        folder=folder,
        shapes=shapes,
        share=share,
    )
    mute = [picture.source for picture in pictures if not picture.captioned]
    if mute and given.name == CONCEPT_IMAGES:
        verdicts.doubt(
            mute[0],
            f"and {len(mute) - 1} more have no caption: like in the notebook, the concept stage"
            " trains them on an empty prompt; write captions beside them",
        )
    return [p if p.captioned else replace(p, prompt="") for p in pictures]


def refuse_none(given: Given, pictures: Sequence[Picture]) -> None:
    """Raise `DataError` when nothing usable was given."""
    if pictures:
        return
    cure = (
        "upload some, or remove the sources to have class images generated"
        if given.name == CLASS_IMAGES
        else "upload some, or remove training.conceptStage"
    )
    raise DataError(
        f"{given.field}: there is no usable picture of {len(given.found.pictures)}; {cure}",
        reason="TooFewPictures",
    )


def publish_given(given: Given, pictures: Sequence[Picture], *, store: Store) -> Artifact:
    """Publish them as a snapshot of their own. Raises the store's errors."""
    prefix, manifest = publish_snapshot(given.run, pictures, store=store)
    return Artifact(
        name=given.name,
        uri=store.uri_of(prefix),
        digest=manifest.digest,
        size=manifest.size_bytes,
    )


def _named(found: Found, kind: str) -> Found:
    """The same files with names that tell them from the dataset's."""
    return Found(
        tuple(replace(file, name=f"{kind} {file.name}") for file in found.pictures),
        {slot: replace(file, name=f"{kind} {file.name}") for slot, file in found.captions.items()},
    )
