"""Spec → the Runs that workers are asked, and the digests that tell when asking again is needed.

Knows the contract and the installation's settings; knows nothing of Jobs or of what happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.digests import digest_json
from kubebooth_api.door import Door
from kubebooth_api.runs import (
    PrepareRun,
    PurgeRun,
    SessionIdentity,
    StoreLocation,
    TrainRun,
    run_digest,
)
from kubebooth_api.v1alpha1.session import DatasetStatus, DreamboothSessionSpec

from kubebooth_operator.doors import Stalled
from kubebooth_operator.settings import Settings

PREPARE, TRAIN, PURGE = "Prepare", "Train", "Purge"


@dataclass(frozen=True)
class Place:
    """Where the session is kept and with whose keys."""

    store: StoreLocation
    secret: str
    """Name of the credentials Secret."""
    chosen_endpoint: str
    """Endpoint that the session itself names. The installation's own may move to another address
    without making anybody's work new."""

    @property
    def identity(self) -> list[str]:
        """What distinguishes one store from another."""
        return [self.store.uri, self.chosen_endpoint]


@dataclass(frozen=True)
class Work:
    """One worker's task."""

    stage: str
    run: PrepareRun | TrainRun | PurgeRun
    target: str
    """Digest of what is reached when the task is done."""
    digest: str
    """Digest of what a Job for this task is made from."""


def resolve_place(spec: DreamboothSessionSpec, settings: Settings) -> Place:
    """The session's store over the installation's. Raises `Stalled` when there is none."""
    asked = spec.storage
    bucket = asked.bucket or settings.store_bucket
    endpoint = asked.endpoint or settings.store_endpoint
    missing = [n for n, value in (("endpoint", endpoint), ("bucket", bucket)) if not value]
    if missing:
        fields = " and ".join(f"spec.storage.{name}" for name in missing)
        raise Stalled(
            "StorageNotConfigured",
            f"{fields}: not set, and the installation has no default; set it here, or install"
            " the chart with store.bundled.enabled or store.external",
        )
    prefix = (settings.store_prefix if asked.prefix is None else asked.prefix).strip("/")
    secret = asked.credentials_secret_ref
    return Place(
        store=StoreLocation(
            uri=f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}",
            endpoint=endpoint,
            region=asked.region or settings.store_region,
        ),
        secret=secret.name if secret else settings.store_secret,
        chosen_endpoint=asked.endpoint or "",
    )


def resolution_of(spec: DreamboothSessionSpec) -> int:
    """Edge of the training pictures in pixels: asked for, or native."""
    return spec.training.resolution or BASE_MODELS[spec.base_model.variant].native_resolution


def prepare(spec: DreamboothSessionSpec, identity: SessionIdentity, place: Place) -> Work:
    """Check the pictures and the base model; `rerun` takes a new snapshot of the uploads."""
    run = PrepareRun(
        session=identity,
        store=place.store,
        base_model=spec.base_model,
        concepts=spec.concepts,
        preprocess=spec.preprocess,
        captions=spec.captions,
        resolution=resolution_of(spec),
    )
    target = digest_json(
        {
            "baseModel": _told(spec.base_model),
            "concepts": [_told(concept) for concept in spec.concepts],
            "preprocess": _told(spec.preprocess),
            "captions": _told(spec.captions),
            "resolution": run.resolution,
            "place": place.identity,
            "uploads": layout.uploads(identity.namespace, identity.name),
            "rerun": spec.rerun,
        }
    )
    return Work(PREPARE, run, target, _work_digest(spec, run, target))


def train(
    spec: DreamboothSessionSpec,
    identity: SessionIdentity,
    place: Place,
    *,
    dataset: DatasetStatus,
    base_model: Artifact,
) -> Work:
    """Train on a prepared snapshot. The target covers what must be reached, not how it is watched:
    other samples or checkpoints do not reopen what is complete."""
    digest = run_digest(
        training=spec.training,
        variant=spec.base_model.variant,
        resolution=resolution_of(spec),
        dataset_digest=dataset.digest,
        base_model_digest=base_model.digest,
        rerun=spec.rerun,
    )
    run = TrainRun(
        session=identity,
        store=place.store,
        digest=digest,
        variant=spec.base_model.variant,
        base_model=base_model,
        dataset=Artifact(name="dataset", uri=dataset.uri, digest=dataset.digest, size=dataset.size),
        resolution=resolution_of(spec),
        training=spec.training,
        samples=spec.samples,
        checkpoints=spec.checkpoints,
        outputs=spec.outputs,
    )
    target = digest_json(
        {
            "run": digest,
            "place": place.identity,
            "steps": [spec.training.text_encoder.steps, spec.training.denoiser.steps],
            "outputs": [_told(output) for output in spec.outputs],
        }
    )
    return Work(TRAIN, run, target, _work_digest(spec, run, target))


def purge(spec: DreamboothSessionSpec, identity: SessionIdentity, place: Place) -> Work:
    """Delete what the session left in the store."""
    run = PurgeRun(session=identity, store=place.store)
    target = digest_json({"purge": identity.uid, "place": place.identity})
    return Work(PURGE, run, target, _work_digest(spec, run, target))


def run_uri(work: Work) -> str:
    """Folder of a train run in the store."""
    run = work.run
    if not isinstance(run, TrainRun):
        raise TypeError(f"{run.kind} has no run folder")
    prefix = layout.run(layout.session(run.session.namespace, run.session.name), run.digest)
    return f"{run.store.uri}/{prefix}"


def _work_digest(
    spec: DreamboothSessionSpec, run: PrepareRun | TrainRun | PurgeRun, target: str
) -> str:
    """What the user decides about a Job. The image and the default store's address are the
    installation's: changing them must not stop what runs."""
    asked = _told(run)
    for of_the_installation in ("endpoint", "region"):
        asked["store"].pop(of_the_installation, None)
    return digest_json(
        {
            "stage": run.kind,
            "run": asked,
            "target": target,
            "runtime": _told(spec.runtime),
            "storage": _told(spec.storage),
        }
    )


def _told(model: Door) -> dict[str, Any]:
    """What differs from the defaults, for digests: a field that a later version adds must neither
    stop what runs nor reopen what is complete. A default that changes has to be written in here."""
    told: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return told
