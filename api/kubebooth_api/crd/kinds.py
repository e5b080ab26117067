"""The three kinds as `kubectl` shows them: names, columns and subresources."""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec, ModelConversionStatus
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec, DreamboothSessionStatus
from kubebooth_api.v1alpha1.webui import WebUIInstanceSpec, WebUIInstanceStatus


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`; `wide` columns need `-o wide`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


@dataclass(frozen=True)
class Scale:
    """Where the scale subresource finds its numbers."""

    spec_path: str
    status_path: str
    selector_path: str


@dataclass(frozen=True)
class Kind:
    """All that a CRD says beside the schema."""

    kind: str
    plural: str
    short: str
    purpose: str
    spec: type[Door]
    status: type[Door]
    columns: tuple[Column, ...]
    scale: Scale | None = None


PHASE = Column("Phase", ".status.phase")
AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS = (
    Kind(
        kind="DreamboothSession",
        plural="dreamboothsessions",
        short="dbs",
        purpose="A handful of photos becomes a fine-tuned model: prepare, caption, train, export.",
        spec=DreamboothSessionSpec,
        status=DreamboothSessionStatus,
        columns=(
            PHASE,
            Column("Progress", ".status.progressText"),
            Column("Message", ".status.summary"),
            AGE,
            Column("Loss", ".status.progress.loss", "number", wide=True),
            Column("Variant", ".spec.baseModel.variant", wide=True),
            Column("Run", ".status.run.uri", wide=True),
            Column("Checkpoint", ".status.checkpoint.uri", wide=True),
            Column("Artifact", ".status.artifacts[0].uri", wide=True),
        ),
    ),
    Kind(
        kind="ModelConversion",
        plural="modelconversions",
        short="mconv",
        purpose="A model in one format becomes the same model in another, proven equal.",
        spec=ModelConversionSpec,
        status=ModelConversionStatus,
        columns=(
            PHASE,
            Column("Format", ".spec.target.format"),
            Column("Progress", ".status.progressText"),
            Column("Message", ".status.summary"),
            AGE,
            Column("Precision", ".spec.target.precision", wide=True),
            Column("Artifact", ".status.artifact.uri", wide=True),
        ),
    ),
    Kind(
        kind="WebUIInstance",
        plural="webuiinstances",
        short="webui",
        purpose="A web UI serves chosen models behind authentication on an Ingress or route.",
        spec=WebUIInstanceSpec,
        status=WebUIInstanceStatus,
        columns=(
            PHASE,
            Column("URL", ".status.url"),
            Column("Engine", ".spec.engine"),
            AGE,
            Column("Message", ".status.message", wide=True),
            Column("Queue", ".status.queueLength", "integer", wide=True),
        ),
        scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
    ),
)
