"""`ModelConversion`: a model in one format becomes the same model in another, proven equal."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.base_model import ModelSource
from kubebooth_api.v1alpha1.common import Artifact, Conditions, DnsLabel, Storage
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session import Attempt, LastFailure, Progress, Retry
from kubebooth_api.v1alpha1.session_status import FetchedModels

Precision = Literal["Keep", "Fp16", "Bf16", "Fp32"]
ModelKind = Literal["Auto", "Pipeline", "Vae", "ControlNet", "Lora"]
SourceVariant = Literal["Auto", "sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev", "flux-schnell"]
PredictionType = Literal["Auto", "Epsilon", "VPrediction", "Flow"]


class ComponentPrecision(Door):
    """Precision of single components, against `precision` of the whole."""

    denoiser: Precision | None = None
    """UNet or transformer."""
    text_encoder: Precision | None = None
    """All text encoders."""
    vae: Precision | None = None
    """VAE; the SDXL VAE overflows in fp16."""


class ConversionTarget(Door):
    """What is written."""

    format: Literal["Diffusers", "Safetensors", "Ckpt"]
    """Diffusers layout or single-file checkpoint."""
    precision: Precision = "Keep"
    """Precision of the written weights."""
    component_precision: ComponentPrecision = ComponentPrecision()
    """Exceptions by component."""
    lora_dialect: Literal["Kohya", "Peft"] = "Kohya"
    """Names of the keys when a LoRA is written."""
    metadata: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=2048)]], Field(max_length=32)
    ] = {}
    """ModelSpec fields to write, such as `title` and `author`."""
    name: DnsLabel | None = None
    """Name of the artifact; absent is the object's name."""


class LoraMerge(Door):
    """A low-rank update that is added to the weights."""

    source: ModelSource
    """Where the update is."""
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Strength."""


class Verify(Door):
    """What is proven after writing."""

    read_back: bool = True
    """Read the output again and compare digests tensor by tensor."""
    finite: bool = True
    """Refuse NaN and infinity."""
    load: bool = False
    """Load the model and run one step on the CPU."""


class ModelConversionSpec(Door):
    """What is asked."""

    source: ModelSource
    """Model to convert; cannot be changed later."""
    target: ConversionTarget
    """What is written."""
    component: ModelKind = "Auto"
    """What the source is; `Auto` reads it from headers."""
    variant: SourceVariant = "Auto"
    """Variant of the source; `Auto` reads it from headers and asks where they cannot tell."""
    prediction_type: PredictionType = "Auto"
    """Prediction type of the source."""
    ema: Literal["Use", "Drop", "Keep"] = "Drop"
    """Whether averaged weights replace the plain ones, are left out, or stay beside them."""
    vae: ModelSource | None = None
    """VAE that replaces the source's."""
    merge_loras: Annotated[tuple[LoraMerge, ...], Field(max_length=16)] = ()
    """Low-rank updates to merge."""
    overwrite: bool = False
    """Permit replacing an artifact of the same name made from other inputs."""
    dry_run: bool = False
    """Plan and report, and write nothing."""
    verify: Verify = Verify()
    """What is proven after writing."""
    suspend: bool = False
    """Pause."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to the artifact when this object is deleted."""
    storage: Storage = Storage()
    """The store; absent fields take the installation's."""
    retry: Retry = Retry()
    """How failures are retried."""
    runtime: Runtime | None = None
    """Where the pod runs; absent is a small pod without accelerator, larger where precision
    changes."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete the finished Job after so many seconds; absent keeps it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.source == oldSelf.source",
            "source is immutable; create another ModelConversion for another source",
            ".source",
        ),
    )


class Detected(Door):
    """What the headers of the source say."""

    family: Annotated[str, StringConstraints(max_length=32)]
    """Model family."""
    variant: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Variant, where it can be known."""
    prediction_type: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Prediction type, where it can be known."""
    evidence: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=256)], ...], Field(max_length=16)
    ] = ()
    """What it was concluded from."""


class ConversionCounts(Door):
    """Summary of the plan and of the proof."""

    tensors: Annotated[int, Field(ge=0)] = 0
    """Tensors written."""
    dropped: Annotated[int, Field(ge=0)] = 0
    """Source tensors left out on purpose."""
    mismatched: Annotated[int, Field(ge=0)] = 0
    """Tensors whose digest did not match after writing; must be 0."""


class ModelConversionStatus(Door):
    """What is the case."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status speaks of."""
    phase: Annotated[str, StringConstraints(max_length=32)] | None = None
    """One word for people; printed, never read."""
    message: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """One sentence for people."""
    conditions: Conditions = ()
    """Conditions of the conversion."""
    source_digest: Digest | None = None
    """Digest of the source."""
    detected: Detected | None = None
    """What the source is."""
    counts: ConversionCounts | None = None
    """Summary of plan and proof."""
    progress: Progress | None = None
    """How far it is, in bytes."""
    progress_text: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Progress in a few words, for `kubectl get`."""
    artifact: Artifact | None = None
    """What was published."""
    summary: Annotated[str, StringConstraints(max_length=100)] | None = None
    """The message, cut to fit a line of `kubectl get`."""
    fetched: FetchedModels = ()
    """Models that came from a hub, a URL or a session."""
    completed_target: Digest | None = None
    """Digest of source and options that were reached; absent while unfinished."""
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
    started_at: datetime | None = None
    """When the current work was first seen."""
    completed_at: datetime | None = None
    """When it was completed."""
    last_failure: LastFailure | None = None
    """The newest failure."""
