"""What is the case with a `DreamboothSession`; also what workers report of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.common import Artifact, Checkpoint, Conditions

Hints = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=256)], ...], Field(max_length=4)
]
"""Advice in plain words, such as where overfitting began."""
STAGES = (
    "Fetch",
    "Prepare",
    "ClassImages",
    "TextEncoder",
    "Concept",
    "Denoiser",
    "Samples",
    "Publish",
    "Export",
)
"""Stages in the order in which a session passes them."""


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
    validation_loss: float | None = None
    """Newest loss on the held-out pictures with fixed noise and timesteps."""
    updated_at: datetime
    """UTC time of this reading."""


class FileVerdict(Door):
    """Why one file of the user's was refused or is doubtful."""

    file: Annotated[str, StringConstraints(max_length=512)]
    """File name as the user knows it."""
    reason: Annotated[str, StringConstraints(max_length=512)]
    """What is wrong and the cure."""


class VisionUsage(Door):
    """What the vision-language model has cost so far."""

    calls: Annotated[int, Field(ge=0)] = 0
    """Answered requests; answers from the cache are not counted."""
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens sent, pictures included."""
    completion_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens received."""
    cost: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Money spent, in the currency of the prices."""


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
    usage: VisionUsage | None = None
    """What captioning, gates and extraction have cost."""
    review_uri: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Page in the store on which a person reviews the dataset."""
    size: Annotated[int, Field(ge=0)] = 0
    """Size of the snapshot in bytes; 0 where it is not known."""
    input_digest: Digest | None = None
    """Digest of what the snapshot was asked with; written by the operator, so that unchanged
    inputs are never prepared twice."""


class Attempt(Door):
    """One try of one worker."""

    number: Annotated[int, Field(ge=1)]
    """Counted from 1 within the session; only the newest are kept."""
    stage: Annotated[str, StringConstraints(max_length=32)]
    """`Fetch`, `Prepare`, `Train` or `Convert`."""
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


class Effective(Door):
    """What `Auto` and absent fields came to in the current run."""

    resolution: Annotated[int, Field(ge=0)] | None = None
    """Edge of the training pictures in pixels."""
    family: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Model family read from the base model's headers."""
    mixed_precision: Annotated[str, StringConstraints(max_length=16)] | None = None
    """Precision of the forward pass."""
    memory_profile: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Memory profile that trains."""


class Estimate(Door):
    """What the run is expected to need, known before an accelerator is asked for."""

    accelerator_memory_gib: Annotated[float, Field(ge=0)] | None = None
    """Peak accelerator memory in GiB."""
    memory_gib: Annotated[float, Field(ge=0)] | None = None
    """Peak host memory in GiB."""
    disk_gib: Annotated[float, Field(ge=0)] | None = None
    """Scratch space in GiB."""
    duration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Time to train in seconds."""


class RunStatus(Door):
    """Identity of the current run."""

    digest: Digest
    """Digest of everything that determines the result."""
    uri: Annotated[str, StringConstraints(max_length=2048)]
    """Folder of the run in the store."""
    base_model_digest: Digest | None = None
    """Digest of the base model that was used."""
    effective: Effective | None = None
    """What `Auto` and absent fields came to."""
    estimate: Estimate | None = None
    """What the run is expected to need."""
    completed_target: Digest | None = None
    """Digest of the targets (run, steps, outputs) that were reached; absent while unfinished."""


class Fetched(Door):
    """A model that a worker brought into the store, or that another session published."""

    input_digest: Digest
    """Digest of what names it, so that unchanged sources are never fetched twice."""
    artifact: Artifact
    """Where it stands in the store."""


FetchedModels = Annotated[tuple[Fetched, ...], Field(max_length=24)]
"""Models in the store, by what names them."""


class DreamboothSessionStatus(Door):
    """What is the case."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status speaks of."""
    phase: Annotated[str, StringConstraints(max_length=32)] | None = None
    """One word for people; printed, never read."""
    message: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """One sentence for people."""
    summary: Annotated[str, StringConstraints(max_length=100)] | None = None
    """The message, cut to fit a line of `kubectl get`."""
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
    hints: Hints = ()
    """What the losses of the current run suggest."""
    class_images: Artifact | None = None
    """Given class images of the current run, if any."""
    concept_images: Artifact | None = None
    """Pictures of the concept stage of the current run, if any."""
    fetched: FetchedModels = ()
    """The base model where it came from a hub, a URL or another session."""
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
