"""Spec of a conversion → the Runs that workers are asked, and what their pods need.

Knows the contract; knows nothing of Jobs or of what happened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kubebooth_api.artifacts import Artifact
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import ConvertRun, MergedLora, PurgeRun, SessionIdentity
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.runtime import Resources, Runtime

from kubebooth_operator.jobs import names
from kubebooth_operator.jobs.sources import Wanted
from kubebooth_operator.jobs.work import CONVERSION, CONVERT, PURGE, Place, Work, digest, told

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DEFAULTS = Resources()
STREAMING = "128Mi"
"""Memory of a conversion that copies byte ranges."""
_CHANGING, _MERGING = "2Gi", "4Gi"
_LOADING: Mapping[str, str] = {
    "sd15": "8Gi",
    "sd21-512": "8Gi",
    "sd21-768": "8Gi",
    "sdxl": "20Gi",
    "flux-dev": "64Gi",
    "flux-schnell": "64Gi",
}
"""Memory to load a model once and run one step on the CPU in fp32, with room."""


@dataclass(frozen=True)
class Models:
    """Where everything stands that a conversion reads."""

    source: Artifact
    vae: Artifact | None = None
    loras: tuple[Artifact, ...] = ()


def wanted(spec: ModelConversionSpec) -> tuple[Wanted, ...]:
    """Every model that is asked for: the source first, then VAE and updates in their order."""
    vae = (Wanted(spec.vae, "spec.vae"),) if spec.vae is not None else ()
    loras = tuple(
        Wanted(lora.source, f"spec.mergeLoras[{number}].source")
        for number, lora in enumerate(spec.merge_loras)
    )
    return (Wanted(spec.source, "spec.source", variant=spec.variant), *vae, *loras)


def models(spec: ModelConversionSpec, found: tuple[Artifact, ...]) -> Models:
    """What was found, in the order of `wanted`."""
    source, rest = found[0], found[1:]
    if spec.vae is None:
        return Models(source, loras=rest)
    return Models(source, vae=rest[0], loras=rest[1:])


def artifact_name(spec: ModelConversionSpec, name: str) -> str:
    """Name of what is published: asked for, or the object's own as far as it fits."""
    if spec.target.name is not None:
        return spec.target.name
    return name if _LABEL.fullmatch(name) else names.stem(name)


def convert(
    spec: ModelConversionSpec, identity: SessionIdentity, place: Place, found: Models
) -> Work:
    """Turn the source into the target. The Work's target covers what determines the result."""
    target = spec.target.model_copy(update={"name": artifact_name(spec, identity.name)})
    merged = tuple(
        MergedLora(artifact=artifact, weight=lora.weight)
        for artifact, lora in zip(found.loras, spec.merge_loras, strict=True)
    )
    run = ConvertRun(
        session=identity,
        store=place.store,
        source=found.source,
        target=target,
        component=spec.component,
        variant=spec.variant,
        prediction_type=spec.prediction_type,
        ema=spec.ema,
        vae=found.vae,
        merge_loras=merged,
        overwrite=spec.overwrite,
        dry_run=spec.dry_run,
        verify=spec.verify,
    )
    reached = digest_json(
        {
            "source": _place_of(found.source),
            "vae": _place_of(found.vae) if found.vae else None,
            "loras": [[*_place_of(lora.artifact), lora.weight] for lora in merged],
            "target": told(target),
            "component": spec.component,
            "variant": spec.variant,
            "predictionType": spec.prediction_type,
            "ema": spec.ema,
            "dryRun": spec.dry_run,
            "verify": told(spec.verify),
            "place": place.identity,
        }
    )
    return Work(
        CONVERT,
        run,
        reached,
        digest(run, reached, runtime=spec.runtime, storage=spec.storage),
        owner=CONVERSION,
        amounts=_amounts(spec),
    )


def purge(spec: ModelConversionSpec, identity: SessionIdentity, place: Place) -> Work:
    """Delete what the conversion left in the store."""
    run = PurgeRun(session=identity, store=place.store, owner="Conversion")
    target = digest_json({"purge": identity.uid, "place": place.identity})
    return Work(
        PURGE,
        run,
        target,
        digest(run, target, runtime=spec.runtime, storage=spec.storage),
        owner=CONVERSION,
        amounts={"cpu": "1", "memory": "512Mi"},
    )


def runtime(spec: ModelConversionSpec) -> Runtime:
    """Where the pods run."""
    return spec.runtime or Runtime()


def memory(spec: ModelConversionSpec) -> str:
    """What the work needs where nobody says otherwise: almost nothing while bytes are copied, more
    where numbers are changed, and the model itself where it is loaded."""
    if spec.verify.load:
        return _LOADING.get(spec.variant, _LOADING["sdxl"])
    if spec.merge_loras:
        return _MERGING
    asked = spec.target.component_precision
    precisions = (spec.target.precision, asked.denoiser, asked.text_encoder, asked.vae)
    changes = any(precision not in (None, "Keep") for precision in precisions)
    return _CHANGING if changes else STREAMING


def _amounts(spec: ModelConversionSpec) -> Mapping[str, str]:
    # The API server fills in the defaults of training pods: they are as if nobody had said it.
    asked = runtime(spec).resources
    return {
        "cpu": asked.cpu if asked.cpu != _DEFAULTS.cpu else "1",
        "memory": asked.memory if asked.memory != _DEFAULTS.memory else memory(spec),
    }


def _place_of(artifact: Artifact) -> list[str]:
    return [artifact.uri, artifact.digest]
