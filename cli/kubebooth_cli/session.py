"""What the command line reads of a session: leniently, so that a newer operator may say more.

It knows no cluster and no terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubebooth_api.v1alpha1.session import STAGES


@dataclass(frozen=True)
class Progress:
    """How far the current stage is."""

    stage: str
    step: int
    total: int
    percentage: int
    remaining_s: int | None = None
    loss: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Artifact:
    """A published model."""

    name: str
    uri: str
    digest: str
    size: int
    format: str


@dataclass(frozen=True)
class Session:
    """One DreamboothSession, or a ModelConversion seen the same way, as last seen."""

    name: str
    """How commands name it: `NAME`, or `mconv/NAME`."""
    namespace: str
    phase: str
    message: str
    current: bool
    """Whether the status speaks of the spec as it is now."""
    conditions: Mapping[str, Mapping[str, Any]]
    progress: Progress | None
    artifacts: tuple[Artifact, ...]
    stages: tuple[str, ...]
    """The stages this session passes, in order."""
    raw: Mapping[str, Any] = field(repr=False)
    """The whole object."""

    @property
    def own_name(self) -> str:
        """The object's name without its kind."""
        return self.name.rpartition("/")[2]

    @property
    def is_conversion(self) -> bool:
        """Whether it is a ModelConversion."""
        return "/" in self.name

    @property
    def status(self) -> Mapping[str, Any]:
        """The raw status; empty before the operator's first word."""
        return _mapping(self.raw.get("status"))

    def holds(self, condition: str) -> bool:
        """Whether a condition is true."""
        return self.conditions.get(condition, {}).get("status") == "True"

    @property
    def ended(self) -> bool | None:
        """True when complete, false when it cannot go on, None while it may."""
        if not self.current:
            return None
        if self.holds("Complete"):
            return True
        return False if self.holds("Failed") or self.holds("Stalled") else None


def read(raw: Mapping[str, Any]) -> Session:
    """A session of a custom resource; absent fields are as if not yet known."""
    conversion = raw.get("kind") == "ModelConversion"
    metadata, status = _mapping(raw.get("metadata")), _mapping(raw.get("status"))
    spec = _mapping(raw.get("spec"))
    conditions = {
        str(condition.get("type")): condition
        for condition in status.get("conditions") or ()
        if isinstance(condition, Mapping)
    }
    return Session(
        name=f"{'mconv/' if conversion else ''}{metadata.get('name', '')}",
        namespace=str(metadata.get("namespace", "")),
        phase=str(status.get("phase") or "Waiting"),
        message=str(status.get("message") or "the operator has not looked at it yet"),
        current=status.get("observedGeneration") == metadata.get("generation"),
        conditions=conditions,
        progress=_progress(_mapping(status.get("progress"))),
        artifacts=tuple(_artifact(item) for item in _published(status)),
        stages=_steps(spec) if conversion else _stages(spec),
        raw=raw,
    )


def age_s(text: Any, now: datetime) -> float | None:
    """Seconds since an RFC 3339 time, or None when it is none."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (now - moment).total_seconds())


def _progress(raw: Mapping[str, Any]) -> Progress | None:
    if not raw.get("stage"):
        return None
    return Progress(
        stage=str(raw["stage"]),
        step=int(raw.get("step") or 0),
        total=int(raw.get("totalSteps") or 0),
        percentage=int(raw.get("percentage") or 0),
        remaining_s=raw.get("estimatedRemainingSeconds"),
        loss=raw.get("loss"),
        images_per_second=raw.get("imagesPerSecond"),
    )


def _artifact(raw: Mapping[str, Any]) -> Artifact:
    return Artifact(
        name=str(raw.get("name", "")),
        uri=str(raw.get("uri", "")),
        digest=str(raw.get("digest", "")),
        size=int(raw.get("size") or 0),
        format=str(raw.get("format") or ""),
    )


def _published(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    one = status.get("artifact")
    return (one,) if isinstance(one, Mapping) else tuple(status.get("artifacts") or ())


def _steps(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages of a conversion."""
    source = _mapping(spec.get("source"))
    return ("Fetch", "Convert") if source.get("huggingFace") or source.get("url") else ("Convert",)


def _stages(spec: Mapping[str, Any]) -> tuple[str, ...]:
    training = _mapping(spec.get("training"))
    absent = set()
    if not training.get("priorPreservation"):
        absent.add("ClassImages")
    if not training.get("conceptStage"):
        absent.add("Concept")
    for name, key in (("TextEncoder", "textEncoder"), ("Denoiser", "denoiser")):
        if _mapping(training.get(key)).get("steps") == 0:
            absent.add(name)
    if _mapping(training.get("textEncoder")).get("mode") == "Joint":
        absent.add("TextEncoder")
    source = _mapping(_mapping(spec.get("baseModel")).get("source"))
    if not (source.get("huggingFace") or source.get("url")):
        absent.add("Fetch")
    if all(
        _mapping(o).get("format", "Diffusers") == "Diffusers" for o in spec.get("outputs") or ()
    ):
        absent.add("Export")
    return tuple(stage for stage in STAGES if stage not in absent)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
