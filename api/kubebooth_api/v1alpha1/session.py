"""`DreamboothSession`: a handful of photos becomes a fine-tuned model."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.base_model import BaseModelRef
from kubebooth_api.v1alpha1.common import (
    Artifact,
    Checkpoint,
    Conditions,
    DnsLabel,
    Runtime,
    SecretKeyRef,
    ShortText,
    Storage,
)
from kubebooth_api.v1alpha1.dataset import Captions, Concept, Preprocess
from kubebooth_api.v1alpha1.training import Checkpoints, Samples, Training

STAGES = ("Prepare", "ClassImages", "TextEncoder", "Denoiser", "Samples", "Publish")
"""Stages in the order in which a session passes them."""


class Output(Door):
    """One published form of the trained model."""

    name: DnsLabel
    """Name of the artifact."""
    format: Literal["Diffusers", "Safetensors", "Ckpt"] = "Diffusers"
    """Diffusers layout, or a single-file checkpoint made by a ModelConversion."""
    precision: Literal["Keep", "Fp16", "Bf16", "Fp32"] = "Keep"
    """Precision of the written weights."""


class HuggingFacePublish(Door):
    """Push the artifact to a Hugging Face repository."""

    repo: ShortText
    """`owner/name`."""
    private: bool = True
    """Whether a new repository is private."""
    token_secret_ref: SecretKeyRef
    """Access token with write permission."""


class Publish(Door):
    """Where the finished model goes besides the store."""

    hugging_face: HuggingFacePublish | None = None
    """A Hugging Face repository."""


class Retry(Door):
    """How failures that a retry may cure are retried."""

    limit: Annotated[int, Field(ge=0, le=100)] = 5
    """Most retries of one stage; preemptions are not counted."""
    backoff_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Wait before the first retry, doubled each time up to 10 minutes, in seconds."""


class DreamboothSessionSpec(Door):
    """What is asked: pictures, base model, training, results."""

    suspend: bool = False
    """Pause: pods are stopped after a checkpoint is saved, and everything is kept."""
    rerun: Annotated[str, StringConstraints(max_length=63)] = ""
    """Free token; changing it trains again from the start beside the old run."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to runs and snapshots in the store when this object is deleted. Uploaded
    pictures are never deleted."""
    base_model: BaseModelRef
    """Model that training starts from."""
    concepts: Annotated[
        tuple[Concept, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ]
    """Subjects to learn."""
    preprocess: Preprocess = Preprocess()
    """How pictures are checked and cropped."""
    captions: Captions = Captions()
    """Where prompts come from."""
    review: Literal["Auto", "Required"] = "Auto"
    """Whether a person must approve the prepared dataset before training."""
    training: Training = Training()
    """How the model is trained."""
    samples: Samples = Samples()
    """Pictures made on the way and at the end."""
    checkpoints: Checkpoints = Checkpoints()
    """When resumable state is saved."""
    outputs: Annotated[
        tuple[Output, ...],
        Field(
            min_length=1,
            max_length=8,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = (Output(name="diffusers"),)
    """Published forms of the trained model."""
    publish: Publish = Publish()
    """Further destinations of the model."""
    storage: Storage = Storage()
    """The store; absent fields take the installation's."""
    runtime: Runtime = Runtime()
    """Where worker pods run."""
    retry: Retry = Retry()
    """How failures are retried."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete finished worker Jobs (never data) after so many seconds; absent keeps them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.training.resolution) || self.training.allowNonNativeResolution"
            " || self.training.resolution <= (self.baseModel.variant in ['sd15', 'sd21-512'] ? 512"
            " : (self.baseModel.variant == 'sd21-768' ? 768 : 1024))",
            "training.resolution is above the native resolution of baseModel.variant (sd15 and"
            " sd21-512: 512, sd21-768: 768, sdxl and flux-dev: 1024); lower it, choose another"
            " variant or set training.allowNonNativeResolution: true",
            ".training.resolution",
        ),
        Rule(
            "!(self.baseModel.variant == 'flux-dev' && self.training.mixedPrecision == 'Fp16')",
            "flux-dev overflows in fp16; set training.mixedPrecision to Bf16 or Auto",
            ".training.mixedPrecision",
        ),
        Rule(
            "!self.training.zeroTerminalSnr || self.baseModel.variant == 'sd21-768'",
            "training.zeroTerminalSnr needs v_prediction: use baseModel.variant sd21-768 or turn"
            " it off",
            ".training.zeroTerminalSnr",
        ),
        Rule(
            "!(self.baseModel.variant == 'flux-dev' && has(self.training.minSnrGamma))",
            "training.minSnrGamma has no meaning for flow matching; remove it for flux-dev",
            ".training.minSnrGamma",
        ),
        Rule(
            "self.concepts.all(c, size(c.sources) == 0) ? size(self.concepts) == 1 :"
            " self.concepts.all(c, size(c.sources) > 0)",
            "uploaded pictures belong to a session of one concept; with several concepts give each"
            " its concepts[].sources",
            ".concepts",
        ),
    )


class Progress(Door):
    """How far the current stage is; also what a worker serves on its port."""

    stage: Annotated[str, StringConstraints(max_length=32)]
    """Current stage, one of `STAGES`."""
    step: Annotated[int, Field(ge=0)]
    """Units of the stage that are done: updates, pictures or files."""
    total_steps: Annotated[int, Field(ge=0)]
    """Units of the stage in all."""
    percentage: Annotated[int, Field(ge=0, le=100)]
    """Share of the whole session's work that is done."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds until the worker is done, at the current speed."""
    loss: float | None = None
    """Smoothed training loss."""
    learning_rate: float | None = None
    """Current learning rate."""
    images_per_second: float | None = None
    """Training pictures per second."""
    updated_at: datetime
    """UTC time of this reading."""


class FileVerdict(Door):
    """Why one file of the user's was refused or is doubtful."""

    file: Annotated[str, StringConstraints(max_length=512)]
    """File name as the user knows it."""
    reason: Annotated[str, StringConstraints(max_length=512)]
    """What is wrong and the cure."""


class DatasetStatus(Door):
    """The known version of the pictures that the run trains on."""

    digest: Digest
    """Digest of the prepared snapshot."""
    uri: Annotated[str, StringConstraints(max_length=2048)]
    """Where the snapshot stands in the store."""
    images: Annotated[int, Field(ge=0)]
    """Usable pictures."""
    captioned: Annotated[int, Field(ge=0)] = 0
    """Pictures with a caption of their own."""
    rejected: Annotated[int, Field(ge=0)] = 0
    """Files that were refused."""
    worst: Annotated[tuple[FileVerdict, ...], Field(max_length=8)] = ()
    """The first refused files."""
    size: Annotated[int, Field(ge=0)] = 0
    """Size of the snapshot in bytes; 0 where it is not known."""
    input_digest: Digest | None = None
    """Digest of what the snapshot was asked with; written by the operator, so that unchanged
    inputs are never prepared twice."""


class Attempt(Door):
    """One try of one worker."""

    number: Annotated[int, Field(ge=1)]
    """Counted from 1 within the session's current run."""
    stage: Annotated[str, StringConstraints(max_length=32)]
    """`Prepare` or `Train`."""
    outcome: Literal["Running", "Succeeded", "Failed", "Preempted"]
    """How it ended."""
    reason: Annotated[str, StringConstraints(max_length=128)] = ""
    """CamelCase reason of a failure."""
    started_at: datetime | None = None
    """When its pod started."""
    finished_at: datetime | None = None
    """When its pod ended."""
    memory_profile: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Memory profile that was used."""
    pod: Annotated[str, StringConstraints(max_length=253)] = ""
    """Name of its pod; empty when no pod was ever seen."""


class LastFailure(Door):
    """The newest failure and what to do about it."""

    reason: Annotated[str, StringConstraints(max_length=128)]
    """CamelCase reason."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """What happened and the cure."""
    exit_code: int | None = None
    """Exit code of the worker."""
    at: datetime | None = None
    """When it happened."""


class RunStatus(Door):
    """Identity of the current run."""

    digest: Digest
    """Digest of everything that determines the result."""
    uri: Annotated[str, StringConstraints(max_length=2048)]
    """Folder of the run in the store."""
    base_model_digest: Digest | None = None
    """Digest of the base model that was used."""
    completed_target: Digest | None = None
    """Digest of the targets (run, steps, outputs) that were reached; absent while unfinished."""


class DreamboothSessionStatus(Door):
    """What is the case."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status speaks of."""
    phase: Annotated[str, StringConstraints(max_length=32)] | None = None
    """One word for people; printed, never read."""
    message: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """One sentence for people."""
    conditions: Conditions = ()
    """Conditions of the session."""
    progress: Progress | None = None
    """How far the current stage is."""
    progress_text: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Progress in a few words, for `kubectl get`."""
    dataset: DatasetStatus | None = None
    """The prepared pictures."""
    base_model: Artifact | None = None
    """The verified base model that runs start from."""
    run: RunStatus | None = None
    """The current run."""
    checkpoint: Checkpoint | None = None
    """Newest durable checkpoint."""
    artifacts: Annotated[
        tuple[Artifact, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """What was published."""
    samples: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Newest sample picture in the store."""
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=32)] = ()
    """Newest tries, oldest first."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Failures of the current work that count against `retry.limit`."""
    work_digest: Digest | None = None
    """Digest of the work that `retries` and `nextRetryAt` speak of; other work starts at 0."""
    counted_job: Annotated[str, StringConstraints(max_length=64)] | None = None
    """UID of the newest Job whose failure is counted in `retries`."""
    next_retry_at: datetime | None = None
    """When the next try starts."""
    last_failure: LastFailure | None = None
    """The newest failure."""
    started_at: datetime | None = None
    """When the current run was first seen."""
    completed_at: datetime | None = None
    """When the current run was completed."""
