"""Which fields of a session this version follows: one table, to grow with the product.

The contract says more than is served yet. A field that is not in the table must be left at its
default: nothing that a user writes may be ignored in silence. Knows only the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubebooth_api import combinations
from kubebooth_api.door import Door, changed_fields
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec

from kubebooth_operator.doors import Stalled
from kubebooth_operator.session import asked

WHOLE = (
    "suspend",
    "rerun",
    "deletionPolicy",
    "approvedDataset",
    "acceptLicense",
    "baseModel.variant",
    "baseModel.source",
    "baseModel.source.digest",
    "baseModel.source.store",
    "baseModel.source.huggingFace",
    "baseModel.source.url",
    "baseModel.source.session",
    "concepts[].name",
    "concepts[].token",
    "concepts[].className",
    "concepts[].instancePrompt",
    "concepts[].repeats",
    "concepts[].sources[].store",
    "preprocess.minImages",
    "preprocess.badFiles",
    "preprocess.minEdge",
    "preprocess.crop",
    "preprocess.focus",
    "preprocess.buckets",
    "captions.prefix",
    "captions.suffix",
    "training.method",
    "training.lora",
    "training.optimizer",
    "training.resolution",
    "training.allowNonNativeResolution",
    "training.textEncoder.steps",
    "training.textEncoder.learningRate",
    "training.textEncoder.lrScheduler",
    "training.textEncoder.warmupSteps",
    "training.textEncoder.mode",
    "training.textEncoder.resolution",
    "training.denoiser",
    "training.priorPreservation",
    "training.priorPreservation.classPrompt",
    "training.priorPreservation.numImages",
    "training.priorPreservation.weight",
    "training.priorPreservation.inferenceSteps",
    "training.priorPreservation.guidanceScale",
    "training.priorPreservation.sources[].store",
    "training.batchSize",
    "training.gradientAccumulation",
    "training.maxGradNorm",
    "training.weightDecay",
    "training.mixedPrecision",
    "training.gradientCheckpointing",
    "training.offsetNoise",
    "training.minSnrGamma",
    "training.zeroTerminalSnr",
    "training.ema",
    "training.captionDropout",
    "training.captionShuffle",
    "training.captionKeepTokens",
    "training.timestepSampling",
    "training.guidance",
    "training.conceptStage",
    "training.conceptStage.sources[].store",
    "training.conceptStage.steps",
    "training.conceptStage.learningRate",
    "training.validation",
    "training.memory",
    "training.compile",
    "training.seed",
    "samples",
    "checkpoints",
    "trackers",
    "outputs[].name",
    "outputs[].format",
    "outputs[].precision",
    "storage",
    "runtime.image",
    "runtime.imagePullSecrets",
    "runtime.resources",
    "runtime.nodeSelector",
    "runtime.tolerations",
    "runtime.priorityClassName",
    "runtime.runtimeClassName",
    "runtime.queueName",
    "runtime.queuePriorityClassName",
    "runtime.terminationGracePeriodSeconds",
    "retry",
    "ttlSecondsAfterFinished",
)
"""Fields that may have any value that the contract allows; a name stands for all below it, unless
fields below it are named too."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "captions.mode": ("Files", "None"),
    "review": ("Auto",),
    "runtime.launcher": ("Job",),
}
"""Fields of which some values are served."""

CURES: Mapping[str, str] = {
    "concepts[].sources": "pictures are read from the session's store: upload them, or name a"
    " prefix in concepts[].sources[].store.key",
    "captions": "captions are read from .txt files beside the pictures: set captions.mode to Files"
    " or None and remove this field",
    "publish": "models are published to the session's store: remove publish",
}
"""What to do instead, by the beginning of the path."""

_ASK_ABOVE = frozenset(path.rpartition(".")[0].removesuffix("[]") for path in WHOLE)


def refuse(spec: DreamboothSessionSpec) -> None:
    """Raise `Stalled` for what this version does not follow, and for what does not go together."""
    refuse_what_is_not_served(spec)
    faults = combinations.faults(
        variant=spec.base_model.variant,
        training=spec.training,
        resolution=asked.resolution_of(spec),
        checkpoints=spec.checkpoints,
        outputs=asked.published(spec) + asked.exported(spec),
    )
    told = "; ".join(f"spec.{fault}" for fault in faults)
    if told:
        raise Stalled("InvalidCombination", told)


def refuse_what_is_not_served(spec: DreamboothSessionSpec) -> None:
    """Raise `Stalled` with reason `NotSupported` that names the first field not served, what this
    version does and the cure."""
    for path, value in changed_fields(spec):
        if path in VALUES:
            if value not in VALUES[path]:
                raise _no(path, value, f"set it to {' or '.join(VALUES[path])}")
            continue
        if not _is_served(path):
            raise _no(path, value, _cure(path))


def _is_served(path: str) -> bool:
    if path in WHOLE:
        return True
    above = _above(path)
    while above:
        if above in WHOLE and above not in _ASK_ABOVE:
            return True
        above = _above(above)
    return False


def _above(path: str) -> str:
    return path.rpartition(".")[0].removesuffix("[]")


def _cure(path: str) -> str:
    for beginning, cure in CURES.items():
        if path.startswith(beginning):
            return cure
    return "remove it"


def _no(path: str, value: Any, cure: str) -> Stalled:
    told = "" if isinstance(value, (Door, tuple, Mapping)) else f" {value}"
    return Stalled("NotSupported", f"spec.{path}:{told} is not served by this version; {cure}")
