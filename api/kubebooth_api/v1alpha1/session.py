"""`DreamboothSession`: a handful of photos becomes a fine-tuned model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.base_model import BaseModelRef
from kubebooth_api.v1alpha1.common import ConfigMapKeyRef, Storage
from kubebooth_api.v1alpha1.dataset import Captions, Concept, Preprocess
from kubebooth_api.v1alpha1.publish import HuggingFacePublish as HuggingFacePublish
from kubebooth_api.v1alpha1.publish import Output as Output
from kubebooth_api.v1alpha1.publish import Publish as Publish
from kubebooth_api.v1alpha1.publish import Trackers as Trackers
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session_status import STAGES as STAGES
from kubebooth_api.v1alpha1.session_status import Attempt as Attempt
from kubebooth_api.v1alpha1.session_status import DatasetStatus as DatasetStatus
from kubebooth_api.v1alpha1.session_status import (
    DreamboothSessionStatus as DreamboothSessionStatus,
)
from kubebooth_api.v1alpha1.session_status import FileVerdict as FileVerdict
from kubebooth_api.v1alpha1.session_status import LastFailure as LastFailure
from kubebooth_api.v1alpha1.session_status import Progress as Progress
from kubebooth_api.v1alpha1.session_status import RunStatus as RunStatus
from kubebooth_api.v1alpha1.training import Checkpoints, Samples, Training
from kubebooth_api.v1alpha1.vision import Extraction, Gate


class Retry(Door):
    """How failures that a retry may cure are retried."""

    limit: Annotated[int, Field(ge=0, le=100)] = 5
    """Most retries of one stage; preemptions are not counted."""
    backoff_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Wait before the first retry, doubled each time up to 10 minutes, in seconds."""


class Deadlines(Door):
    """Longest times after which a session fails instead of holding its place."""

    pending_seconds: Annotated[int, Field(ge=60, le=31_536_000)] | None = None
    """Longest wait of a pod for a node or quota, in seconds."""
    prepare_seconds: Annotated[int, Field(ge=60, le=31_536_000)] | None = None
    """Longest preparation, in seconds."""
    train_seconds: Annotated[int, Field(ge=60, le=31_536_000)] | None = None
    """Longest training over all tries, in seconds; a checkpoint is saved before it ends."""


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
    approved_dataset: Digest | None = None
    """Digest of the dataset that a person approved, from `status.dataset.digest`; read when
    `review` is `Required`."""
    gates: Annotated[
        tuple[Gate, ...],
        Field(
            max_length=32,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Questions that every picture must pass, asked of `captions.model`."""
    extraction: Extraction | None = None
    """Table of facts read from the pictures by `captions.model`."""
    consent_ref: ConfigMapKeyRef | None = None
    """Where the consent of the pictured person is recorded; an installation may require it."""
    accept_license: bool = False
    """You accept the base model's licence; needed where the licence asks for it, as FLUX.1 [dev]
    does."""
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
    trackers: Trackers = Trackers()
    """Where losses and samples are shown while the model trains."""
    storage: Storage = Storage()
    """The store; absent fields take the installation's."""
    runtime: Runtime = Runtime()
    """Where worker pods run."""
    retry: Retry = Retry()
    """How failures are retried."""
    deadlines: Deadlines = Deadlines()
    """Longest times after which the session fails."""
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
        Rule(
            "size(self.gates) == 0 || has(self.captions.model)",
            "gates ask a vision-language model: name it in captions.model",
            ".gates",
        ),
        Rule(
            "!has(self.extraction) || has(self.captions.model)",
            "extraction asks a vision-language model: name it in captions.model",
            ".extraction",
        ),
    )
