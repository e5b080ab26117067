"""Operator → worker: what a `Run` asks. Worker → operator: what a `RunReport` answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from kubebooth_api.artifacts import Artifact, Checkpoint, Uri
from kubebooth_api.digests import Digest, digest_json
from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.base_model import BaseModelRef, Variant
from kubebooth_api.v1alpha1.dataset import Captions, Concept, ImageSource, Preprocess
from kubebooth_api.v1alpha1.publish import Output, Trackers
from kubebooth_api.v1alpha1.session_status import DatasetStatus, Progress
from kubebooth_api.v1alpha1.training import Checkpoints, Samples, Training
from kubebooth_api.v1alpha1.vision import Extraction, Gate

REPORT_LIMIT_BYTES = 4096
"""Kubernetes cuts a termination message here."""


class StoreLocation(Door):
    """Where the session's store is; credentials come from the environment."""

    uri: Uri
    """`s3://bucket[/prefix]` or `file:///folder`: the store's root."""
    endpoint: str | None = None
    """Address of the S3 service; absent for a folder."""
    region: str | None = None
    """Region used in signatures."""


class SessionIdentity(Door):
    """Whose run it is."""

    namespace: str
    """Namespace of the session."""
    name: str
    """Name of the session."""
    uid: str = ""
    """UID of the object; empty on a laptop."""


class PrepareRun(Door):
    """Check the pictures and the base model, and publish a snapshot to train on."""

    kind: Literal["Prepare"] = "Prepare"
    session: SessionIdentity
    """Whose run it is."""
    store: StoreLocation
    """Where everything stands."""
    base_model: BaseModelRef
    """Model to resolve and verify."""
    concepts: tuple[Concept, ...]
    """Subjects and their pictures."""
    preprocess: Preprocess = Preprocess()
    """How pictures are checked and cropped."""
    captions: Captions = Captions()
    """Where prompts come from."""
    resolution: int
    """Edge of the square training pictures in pixels."""
    gates: tuple[Gate, ...] = ()
    """Questions that every picture must pass."""
    extraction: Extraction | None = None
    """Table of facts to read from the pictures."""
    class_sources: tuple[ImageSource, ...] = ()
    """Where class images are given."""


class TrainRun(Door):
    """Train on a published snapshot, and publish what comes of it."""

    kind: Literal["Train"] = "Train"
    session: SessionIdentity
    """Whose run it is."""
    store: StoreLocation
    """Where everything stands."""
    digest: Digest
    """Identity of the run, see `run_digest`."""
    variant: Variant
    """Variant of the base model."""
    base_model: Artifact
    """Verified base model in the store."""
    dataset: Artifact
    """Prepared snapshot in the store."""
    resolution: int
    """Edge of the square training pictures in pixels."""
    training: Training
    """How to train."""
    samples: Samples = Samples()
    """Pictures to make."""
    checkpoints: Checkpoints = Checkpoints()
    """When to save."""
    outputs: tuple[Output, ...] = (Output(name="diffusers"),)
    """Forms to publish; the trainer itself writes the Diffusers layout."""
    trackers: Trackers = Trackers()
    """Where losses and samples are shown."""
    class_images: Artifact | None = None
    """Given class images in the store; what is missing is generated."""


class PurgeRun(Door):
    """Delete what a session left in the store, but never its uploads."""

    kind: Literal["Purge"] = "Purge"
    session: SessionIdentity
    """Whose data it is."""
    store: StoreLocation
    """Where everything stands."""


Run = Annotated[PrepareRun | TrainRun | PurgeRun, Field(discriminator="kind")]
RUN: TypeAdapter[PrepareRun | TrainRun | PurgeRun] = TypeAdapter(Run)
"""Parses and prints the JSON of a Run: `RUN.validate_json(text)`."""


class RunReport(Door):
    """The last word of a worker; at most `REPORT_LIMIT_BYTES` of JSON."""

    kind: Literal["Prepare", "Train", "Purge"]
    """Which Run it answers."""
    outcome: Literal["Succeeded", "Failed", "Preempted"]
    """How it ended."""
    reason: Annotated[str, StringConstraints(max_length=128)] = "Succeeded"
    """CamelCase reason, from the worker's error or `exitcodes.REASONS`."""
    message: Annotated[str, StringConstraints(max_length=1024)] = ""
    """What happened and the cure, for people."""
    exit_code: int = 0
    """Exit code, see `exitcodes.ExitCode`."""
    dataset: DatasetStatus | None = None
    """Prepare: the snapshot."""
    base_model: Artifact | None = None
    """Prepare: the verified base model."""
    checkpoint: Checkpoint | None = None
    """Train: newest durable checkpoint."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=4)] = ()
    """Train: what was published."""
    samples: Uri | None = None
    """Train: newest sample picture."""
    memory_profile: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Train: memory profile that was used."""
    started_at: datetime
    """UTC time of start."""
    finished_at: datetime
    """UTC time of end."""


class WorkerStatus(Door):
    """What a worker serves at `/progress` while it runs."""

    progress: Progress
    """How far it is."""
    checkpoint: Checkpoint | None = None
    """Newest durable checkpoint."""
    samples: Uri | None = None
    """Newest sample picture."""


def run_digest(
    *,
    training: Training,
    variant: str,
    resolution: int,
    dataset_digest: str,
    base_model_digest: str,
    rerun: str = "",
) -> str:
    """Identity of a run: everything that determines its result.

    Step targets are left out, so that raising them continues the same run. Whether a stage exists
    at all (`steps` 0 or not) is kept in. What only decides speed or memory is left out too, and so
    is every default: a field that a later version adds must not start every run anew. A default
    that changes would have to be written in here.
    """
    inputs: dict[str, Any] = training.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for name, steps in (
        ("textEncoder", training.text_encoder.steps),
        ("denoiser", training.denoiser.steps),
    ):
        inputs[name] = {**inputs.get(name, {}), "steps": steps > 0}
    inputs.get("conceptStage", {}).pop("steps", None)
    for name in ("gradientCheckpointing", "allowNonNativeResolution", "resolution"):
        inputs.pop(name, None)
    return digest_json(
        {
            "training": inputs,
            "variant": variant,
            "resolution": resolution,
            "dataset": dataset_digest,
            "baseModel": base_model_digest,
            "rerun": rerun,
        }
    )
