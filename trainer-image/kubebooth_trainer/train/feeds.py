"""Everything that the stages of a run train on: pictures, class images, latents and words.

It brings them together before the first update, while the model is still the base model; what was
computed stays in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Manifest
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun
from kubebooth_store import Store, fetch
from torch import Tensor

from kubebooth_trainer.errors import InternalFault
from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train.batches import Example, Feed
from kubebooth_trainer.train.cache import Cache
from kubebooth_trainer.train.class_images import ClassPlan, class_images, plan_class_images
from kubebooth_trainer.train.dataset import Picture, Snapshot, read_snapshot
from kubebooth_trainer.train.latents import examples, vae_identity
from kubebooth_trainer.train.stages import Stage, StageName
from kubebooth_trainer.train.words import Words, stored_words, text_identity


@dataclass(frozen=True)
class Sources:
    """The pictures of a run, before anything is computed of them."""

    taught: tuple[Picture, ...]
    """Instance pictures to train on."""
    held_out: tuple[Picture, ...]
    """Instance pictures for the validation loss."""
    concept: tuple[Picture, ...]
    """Pictures of the concept stage."""
    classes: ClassPlan | None
    """Class images, if any are asked for."""

    @property
    def painted(self) -> int:
        """Class images that are painted."""
        return len(self.classes.painted) if self.classes else 0


@dataclass(frozen=True)
class Place:
    """Where things are computed and kept."""

    model: Model
    placement: Placement
    base: Manifest
    """Manifest of the base model, whose digests name VAE and text encoder."""
    store: Store
    reporter: Reporter
    workdir: Path


def find_sources(
    run: TrainRun, snapshot: Snapshot, held_out: Sequence[Picture], *, store: Store, workdir: Path
) -> Sources:
    """Fetch what is given beside the dataset. Raises `DataError` and the store's errors."""
    prior, stage = run.training.prior_preservation, run.training.concept_stage
    given = _given(run, run.class_images, store=store, folder=workdir / "given-class-images")
    concept = _given(run, run.concept_images, store=store, folder=workdir / "concept-images")
    plan = plan_class_images(run, prior, pictures=snapshot.pictures, given=given) if prior else None
    return Sources(snapshot.pictures, tuple(held_out), concept if stage else (), plan)


class Feeds:
    """Batches and words of every stage that is left to train."""

    def __init__(
        self,
        run: TrainRun,
        place: Place,
        feeds: Mapping[StageName, Feed],
        held_out: Sequence[Example],
    ) -> None:
        self._run, self._place, self._feeds = run, place, feeds
        self.held_out = tuple(held_out)
        """Held-out pictures as the denoiser stage would see them."""

    def of(self, stage: Stage) -> Feed:
        """The batches of a stage."""
        if stage.name not in self._feeds:
            raise InternalFault(f"no pictures were loaded although {stage.name} is not finished")
        return self._feeds[stage.name]

    def words(self, stage: Stage, *, trained: Mapping[str, Tensor]) -> Words:
        """The words of a stage; `trained` are the weights by which the text encoder differs from
        the base model, none where no stage before trained it.

        Raises `Preempted` when the worker is asked to stop meanwhile.
        """
        place, device = self._place, self._place.placement.device
        if "textEncoder" in stage.parts:
            return Words(place.model, frozen=False, device=device)
        prompts = [*self.of(stage).prompts, *(example.prompt for example in self.held_out)]
        cache = _cache(self._run, place, text_identity(_digests(place.base), trained))
        stored = stored_words(
            place.model, list(dict.fromkeys(prompts)), cache=cache, stop=place.reporter.stop
        )
        return Words(place.model, frozen=True, device=device, stored=stored)


def gather(
    run: TrainRun,
    sources: Sources,
    stages: Sequence[Stage],
    place: Place,
    *,
    on_painted: Callable[[int], None],
) -> Feeds:
    """Paint class images and encode pictures for these stages; must run on the base model.

    Raises `DataError`, `Preempted` and the store's errors.
    """
    prior, model = run.training.prior_preservation, place.model
    classes: tuple[Picture, ...] = ()
    if prior is not None and sources.classes is not None and _with_classes(stages):
        classes = class_images(
            run, prior, sources.classes, model=model, store=place.store,
            folder=place.workdir / "class-images", stop=place.reporter.stop, on_done=on_painted,
        )  # fmt: skip
    cache = _cache(run, place, vae_identity(_digests(place.base)))

    def encoded(pictures: Sequence[Picture], resolution: int) -> list[Example]:
        return examples(
            model, pictures, cache=cache, stop=place.reporter.stop,
            prepared=run.resolution, wanted=resolution,
        )  # fmt: skip

    feeds: dict[StageName, Feed] = {}
    for stage in stages:
        edge = resolution_of(run, stage)
        concept = stage.name == "Concept"
        feeds[stage.name] = Feed(
            model,
            instances=encoded(sources.concept if concept else sources.taught, edge),
            classes=[] if concept else encoded(classes, edge),
            training=run.training,
            device=place.placement.device,
        )
    held_out = encoded([replace(p, repeats=1) for p in sources.held_out], run.resolution)
    return Feeds(run, place, feeds, held_out)


def resolution_of(run: TrainRun, stage: Stage) -> int:
    """Edge in pixels of a square of the area that a stage trains at."""
    if stage.name == "Denoiser":
        return run.resolution
    return run.training.text_encoder.resolution or run.resolution


def _with_classes(stages: Sequence[Stage]) -> bool:
    """Whether any stage has class images: the concept stage has none, as in the notebook."""
    return any(stage.name != "Concept" for stage in stages)


def _given(
    run: TrainRun, artifact: Artifact | None, *, store: Store, folder: Path
) -> tuple[Picture, ...]:
    if artifact is None:
        return ()
    fetch(store, store.key_of(artifact.uri), folder, expect_digest=artifact.digest)
    return read_snapshot(folder, resolution=run.resolution).pictures


def _cache(run: TrainRun, place: Place, identity: Mapping[str, object]) -> Cache:
    """The cache of what these files and weights make; precision is part of what names it."""
    placement = place.placement
    return Cache(
        place.store,
        session_prefix=layout.session(run.session.namespace, run.session.name),
        folder=place.workdir / "cache",
        identity={
            **identity,
            "family": BASE_MODELS[run.variant].family,
            "autocast": _told(placement.autocast),
            "frozen": _told(placement.frozen),
        },
    )


def _digests(base: Manifest) -> dict[str, str]:
    return {file.path: file.sha256 for file in base.files}


def _told(dtype: torch.dtype | None) -> str:
    return str(dtype or torch.float32).removeprefix("torch.")
