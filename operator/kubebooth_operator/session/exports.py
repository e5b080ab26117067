"""Outputs that conversions make of the trained model: one owned ModelConversion for each. Pure.

A conversion's name follows from what it converts and to what, so another model or other options are
another conversion; the earlier one stays until the new one is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_api.artifacts import Artifact
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.digests import digest_json, short
from kubebooth_api.v1alpha1.conversion import ModelConversionStatus
from kubebooth_api.v1alpha1.publish import Output
from kubebooth_api.v1alpha1.runtime import Resources, Runtime
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from pydantic import ValidationError

from kubebooth_operator.doors import ChildRef, Manifest
from kubebooth_operator.jobs import names
from kubebooth_operator.jobs.readings import Seen
from kubebooth_operator.jobs.work import CONVERSION, SESSION, Place, told
from kubebooth_operator.resources import API_VERSION, GROUP, MANAGED_BY, MANAGED_BY_LABEL
from kubebooth_operator.session import asked
from kubebooth_operator.session.facts import Facts

OUTPUT_LABEL = f"{GROUP}/output"
_PREDICTIONS = {"epsilon": "Epsilon", "v_prediction": "VPrediction", "flow": "Flow"}


@dataclass(frozen=True)
class Export:
    """One owned conversion as it was last seen."""

    name: str
    output: str
    ref: ChildRef
    terminating: bool
    manifest: Manifest
    status: ModelConversionStatus
    current: bool
    """Whether the status speaks of the spec as it is."""

    def holds(self, condition: str) -> bool:
        """Whether a condition of it is true now."""
        return self.current and any(
            c.type == condition and c.status == "True" for c in self.status.conditions
        )

    @property
    def artifact(self) -> Artifact | None:
        """What it published, once that is complete."""
        return self.status.artifact if self.holds("Complete") else None

    def why(self) -> tuple[str, str]:
        """Reason and message of its state."""
        ready = next((c for c in self.status.conditions if c.type == "Ready"), None)
        if ready is None or not self.current:
            return "Exporting", "the conversion is about to start"
        return ready.reason, ready.message


def read(children: Iterable[Manifest]) -> tuple[Export, ...]:
    """The owned conversions among an object's children."""
    return tuple(_export(child) for child in children if child.get("kind") == CONVERSION)


def manifests(
    seen: Seen[Any], spec: DreamboothSessionSpec, place: Place, known: Facts
) -> dict[str, dict[str, Any]]:
    """The conversions that should be, by output. Empty while there is nothing to convert."""
    source = _source(spec, known)
    if source is None:
        return {}
    return {
        output.name: _manifest(seen, spec, place, output, source) for output in asked.exported(spec)
    }


def superseded(there: Iterable[Export], wanted: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of conversions that have a complete successor, or whose output nobody asks for."""
    there = tuple(there)
    done = {e.output for e in there if e.artifact is not None and _is_wanted(e, wanted)}
    return {
        e.name
        for e in there
        if not _is_wanted(e, wanted) and (e.output not in wanted or e.output in done)
    }


def published(
    there: Iterable[Export], wanted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Artifact]:
    """The newest artifact of each output: the wanted conversion's, or an earlier one's."""
    found: dict[str, Artifact] = {}
    for export in sorted(there, key=lambda e: _is_wanted(e, wanted)):
        if export.artifact is not None:
            found[export.output] = export.artifact.model_copy(update={"name": export.output})
    return found


def _is_wanted(export: Export, wanted: Mapping[str, Mapping[str, Any]]) -> bool:
    manifest = wanted.get(export.output)
    return manifest is not None and manifest["metadata"]["name"] == export.name


def _export(child: Manifest) -> Export:
    metadata = child["metadata"]
    try:
        status = ModelConversionStatus.parse(child.get("status") or {})
    except ValidationError:
        status = ModelConversionStatus()
    name, namespace = metadata["name"], metadata["namespace"]
    return Export(
        name=name,
        output=str((metadata.get("labels") or {}).get(OUTPUT_LABEL, "")),
        ref=ChildRef(API_VERSION, CONVERSION, namespace, name, metadata["uid"]),
        terminating=bool(metadata.get("deletionTimestamp")),
        manifest=child,
        status=status,
        current=status.observed_generation == metadata.get("generation"),
    )


def _source(spec: DreamboothSessionSpec, known: Facts) -> Artifact | None:
    name = next((o.name for o in asked.published(spec) if o.precision == "Keep"), None)
    return next((artifact for artifact in known.artifacts if artifact.name == name), None)


def _manifest(
    seen: Seen[Any], spec: DreamboothSessionSpec, place: Place, output: Output, source: Artifact
) -> dict[str, Any]:
    target = {"format": output.format, "precision": output.precision, "name": output.name}
    identity = digest_json([seen.uid, source.digest, source.uri, place.identity, target])
    lora = spec.training.method == "LoRA"
    row = BASE_MODELS[spec.base_model.variant]
    retry = {names.RETRY_ANNOTATION: seen.retry_token} if seen.retry_token else {}
    return {
        "apiVersion": API_VERSION,
        "kind": CONVERSION,
        "metadata": {
            "name": _name(seen.name, output.name, identity),
            "namespace": seen.namespace,
            "labels": {
                MANAGED_BY_LABEL: MANAGED_BY,
                **names.owner_label(SESSION, seen.name),
                OUTPUT_LABEL: output.name,
            },
            **({"annotations": retry} if retry else {}),
        },
        "spec": {
            "source": {
                "store": {"key": source.uri.removeprefix(f"{place.store.uri}/")},
                "digest": source.digest,
            },
            "target": target,
            "component": "Lora" if lora else "Pipeline",
            "variant": spec.base_model.variant,
            "predictionType": "Auto" if lora else _PREDICTIONS[row.prediction_type],
            "suspend": spec.suspend,
            "deletionPolicy": spec.deletion_policy,
            **({"storage": told(spec.storage)} if told(spec.storage) else {}),
            "retry": spec.retry.dump(),
            **_runtime(spec.runtime),
            **(
                {"ttlSecondsAfterFinished": spec.ttl_seconds_after_finished}
                if spec.ttl_seconds_after_finished is not None
                else {}
            ),
        },
    }


def _name(session: str, output: str, identity: str) -> str:
    stem = names.stem(session)[:30].rstrip("-")
    return f"{stem}-{output[:15].rstrip('-')}-{short(identity, 10)}"


def _runtime(runtime: Runtime) -> dict[str, Any]:
    """Where the session's workers run, but with a conversion's own resources."""
    moved = told(
        runtime.model_copy(
            update={"resources": Resources(), "launcher": "Job", "nodes": 1, "device_claims": ()}
        )
    )
    return {"runtime": moved} if moved else {}
