"""Operator → worker: what a `Run` asks. Worker → operator: what a `RunReport` answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from kubebooth_api.artifacts import Artifact, Checkpoint, Uri
from kubebooth_api.digests import Digest, digest_json
from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.base_model import BaseModelRef, ModelSource, Variant
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_api.v1alpha1.conversion import (
    ConversionCounts,
    ConversionTarget,
    Detected,
    ModelKind,
    PredictionType,
    SourceVariant,
    Verify,
)
from kubebooth_api.v1alpha1.dataset import Captions, Concept, ImageSource, Preprocess
from kubebooth_api.v1alpha1.publish import Output, Trackers
from kubebooth_api.v1alpha1.session_status import DatasetStatus, Hints, Progress
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
    fetched: Artifact | None = None
    """The base model, where a Fetch or another session left it; absent when it is named by its
    place in the store."""
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
    concept_sources: tuple[ImageSource, ...] = ()
    """Where the pictures of `training.conceptStage` are."""


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
    concept_images: Artifact | None = None
    """Snapshot of the pictures of `training.conceptStage`."""


class FetchRun(Door):
    """Bring a model from a hub or a URL into the store, once, verified."""

    kind: Literal["Fetch"] = "Fetch"
    session: SessionIdentity
    """Whose run it is."""
    store: StoreLocation
    """Where everything stands."""
    source: ModelSource
    """`huggingFace` or `url`; tokens come from the environment, see `token_variable`."""
    variant: SourceVariant = "Auto"
    """Variant that it must be; a mismatch is refused with the evidence."""
    layout: Literal["AsIs", "Diffusers"] = "AsIs"
    """Form to leave in the store: as it came, or turned into the Diffusers layout."""
    hub: str = "https://huggingface.co"
    """Address of the hub; a mirror is another."""
    allow_private: bool = False
    """Whether addresses of private networks may be asked."""


class MergedLora(Door):
    """A low-rank update to merge, where it stands in the store."""

    artifact: Artifact
    """The update."""
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Strength."""


class ConvertRun(Door):
    """Turn a model of the store into the same model in another form, and prove it."""

    kind: Literal["Convert"] = "Convert"
    session: SessionIdentity
    """Namespace and name of the ModelConversion."""
    store: StoreLocation
    """Where everything stands."""
    source: Artifact
    """The model to convert: a published folder, or a single object when its URI has no manifest.
    Its digest is `UNKNOWN_DIGEST` where only its place is known."""
    target: ConversionTarget
    """What is written."""
    component: ModelKind = "Auto"
    """What the source is."""
    variant: SourceVariant = "Auto"
    """Variant of the source."""
    prediction_type: PredictionType = "Auto"
    """Prediction type of the source."""
    ema: Literal["Use", "Drop", "Keep"] = "Drop"
    """Whether averaged weights replace the plain ones, are left out, or stay beside them."""
    vae: Artifact | None = None
    """VAE that replaces the source's."""
    merge_loras: tuple[MergedLora, ...] = ()
    """Low-rank updates to merge."""
    overwrite: bool = False
    """Permit moving the name to an artifact made from other inputs."""
    dry_run: bool = False
    """Plan and report, and write nothing."""
    verify: Verify = Verify()
    """What is proven after writing."""


class PurgeRun(Door):
    """Delete what a session left in the store, but never its uploads."""

    kind: Literal["Purge"] = "Purge"
    session: SessionIdentity
    """Whose data it is."""
    store: StoreLocation
    """Where everything stands."""
    owner: Literal["Session", "Conversion"] = "Session"
    """Kind of object that left."""


AnyRun = FetchRun | PrepareRun | TrainRun | ConvertRun | PurgeRun
Run = Annotated[AnyRun, Field(discriminator="kind")]
RUN: TypeAdapter[AnyRun] = TypeAdapter(Run)
"""Parses and prints the JSON of a Run: `RUN.validate_json(text)`."""


class RunReport(Door):
    """The last word of a worker; at most `REPORT_LIMIT_BYTES` of JSON."""

    kind: Literal["Fetch", "Prepare", "Train", "Convert", "Purge"]
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
    class_images: Artifact | None = None
    """Prepare: given class images, if any."""
    concept_images: Artifact | None = None
    """Prepare: pictures of the concept stage, if any."""
    base_model: Artifact | None = None
    """Fetch, Prepare: the verified base model."""
    checkpoint: Checkpoint | None = None
    """Train: newest durable checkpoint."""
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=4)] = ()
    """Train, Convert: what was published."""
    samples: Uri | None = None
    """Train: newest sample picture."""
    memory_profile: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Train: memory profile that was used."""
    hints: Hints = ()
    """Train: what the losses suggest, in plain words."""
    detected: Detected | None = None
    """Fetch, Convert: what the headers of the source say."""
    counts: ConversionCounts | None = None
    """Convert: summary of plan and proof."""
    source_digest: Digest | None = None
    """Convert: digest of the source as it was read."""
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


def token_variable(ref: SecretKeyRef) -> str:
    """Environment variable in which a worker finds the value of a Secret's key."""
    return (
        f"KUBEBOOTH_TOKEN_{digest_json([ref.name, ref.key]).removeprefix('sha256:')[:12].upper()}"
    )


def run_digest(
    *,
    training: Training,
    variant: str,
    resolution: int,
    dataset_digest: str,
    base_model_digest: str,
    rerun: str = "",
    class_images_digest: str | None = None,
    concept_images_digest: str | None = None,
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
    given = {"classImages": class_images_digest, "conceptImages": concept_images_digest}
    return digest_json(
        {
            "training": inputs,
            "variant": variant,
            "resolution": resolution,
            "dataset": dataset_digest,
            "baseModel": base_model_digest,
            "rerun": rerun,
            **{name: digest for name, digest in given.items() if digest is not None},
        }
    )
