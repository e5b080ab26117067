"""A Convert run: a model of the store becomes the same model in another form, in the store.

It joins opening, planning and publishing; it must not know formats or families.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Manifest
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import ConvertRun
from kubebooth_api.v1alpha1.conversion import ConversionCounts, Detected
from kubebooth_store import Conflict, Store, move_pointer, read_manifest, read_pointer

from kubebooth_trainer.convert.door import Opened, Plan
from kubebooth_trainer.convert.meter import Meter
from kubebooth_trainer.convert.options import ComponentPrecision, Merged, Options
from kubebooth_trainer.convert.stored.sources import open_stored, promises_of
from kubebooth_trainer.convert.stored.targets import publish_plan
from kubebooth_trainer.convert.writing.targets import Wish, written_bytes
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.reporter import Reporter

REVISION = 1
"""Raised when the same inputs give other bytes, so that what stands there is made anew."""
_POINTER_TRIES = 5
_MOST_EVIDENCE = 8
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertOutcome:
    """What a conversion made true; the fields are those of `RunReport`."""

    message: str
    artifacts: tuple[Artifact, ...] = ()
    detected: Detected | None = None
    counts: ConversionCounts | None = None
    source_digest: str | None = None


def convert(run: ConvertRun, *, store: Store, reporter: Reporter, workdir: Path) -> ConvertOutcome:
    """Convert, prove and publish; what is published already is only told.

    Raises `WorkerError` and store errors; the artifact before stays in every case.
    """
    name = run.target.name or run.session.name
    home = layout.conversion(run.session.namespace, run.session.name)
    source = open_stored(store, store.key_of(run.source.uri), expect=run.source.digest)
    inputs = inputs_digest(run, source.digest)
    prefix = layout.artifact(home, name, inputs)
    there = read_manifest(store, prefix)
    if there is not None and there.metadata.get("inputs") == inputs:
        _point(run, store, home, name, inputs, there)
        return _told(run, store, prefix, name, there, source.digest, "already published")
    _refuse_taken(run, store, home, name, inputs)
    plan = _planned(run, store, source.opened, name)
    detected, counts = detected_of(plan), counts_of(plan)
    if run.dry_run:
        told = f"would write {counts.tensors} tensors in {written_bytes(plan)} bytes"
        return ConvertOutcome(told, (), detected, counts, source.digest)
    wish = Wish(read_back=run.verify.read_back, finite=run.verify.finite)
    checks = (*source.opened.checks, *promises_of(plan)) if wish.read_back else ()
    meter = Meter(reporter, "Convert", plan, wish, checks)
    published = publish_plan(
        plan,
        store,
        prefix,
        wish,
        checks=checks,
        metadata={
            "inputs": inputs,
            "source": source.digest,
            "format": run.target.format,
            "detected": detected.model_dump(mode="json", by_alias=True, exclude_none=True),
            "counts": counts.model_dump(mode="json", by_alias=True),
        },
        tell=meter,
    )
    if run.verify.load:
        from kubebooth_trainer.convert.proof.loading import load_published

        load_published(store, prefix, published.manifest, plan, workdir)
    _point(run, store, home, name, inputs, published.manifest)
    _LOG.info("converted", extra={"artifact": prefix, "tensors": counts.tensors})
    return _told(run, store, prefix, name, published.manifest, source.digest, "converted")


def inputs_digest(run: ConvertRun, source_digest: str) -> str:
    """Identity of a conversion: everything that determines the bytes it gives."""
    target = run.target.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    target["format"] = run.target.format
    target.pop("name", None)
    return digest_json(
        {
            "revision": REVISION,
            "source": source_digest,
            "target": target,
            "name": run.target.name or run.session.name,
            "component": run.component,
            "variant": run.variant,
            "predictionType": run.prediction_type,
            "ema": run.ema,
            "vae": run.vae.digest if run.vae else None,
            "loras": [[row.artifact.digest, row.weight] for row in run.merge_loras],
        }
    )


def detected_of(plan: Plan) -> Detected:
    """What a plan says of its source, cut to fit a report."""
    evidence = tuple(line[:256] for line in plan.evidence[:_MOST_EVIDENCE])
    return Detected(
        family=plan.family[:32],
        variant=plan.variant[:32] or None,
        prediction_type=plan.prediction_type[:32] or None,
        evidence=evidence,
    )


def counts_of(plan: Plan) -> ConversionCounts:
    """Summary of a plan."""
    tensors = sum(len(file.tensors) for file in plan.files)
    return ConversionCounts(tensors=tensors, dropped=len(plan.dropped))


def _planned(run: ConvertRun, store: Store, opened: Opened, name: str) -> Plan:
    from kubebooth_trainer.convert.planning import plan

    vae = run.vae
    precision = run.target.component_precision
    options = Options(
        form=run.target.format,
        name=name,
        precision=run.target.precision,
        component_precision=ComponentPrecision(
            precision.denoiser, precision.text_encoder, precision.vae
        ),
        component=run.component,
        variant=run.variant,
        prediction_type=run.prediction_type,
        ema=run.ema,
        vae=open_stored(store, store.key_of(vae.uri), expect=vae.digest).opened if vae else None,
        merge_loras=tuple(
            Merged(
                open_stored(
                    store, store.key_of(row.artifact.uri), expect=row.artifact.digest
                ).opened,
                row.weight,
                row.artifact.name,
            )
            for row in run.merge_loras
        ),
        lora_dialect=run.target.lora_dialect,
        metadata=run.target.metadata,
    )
    return plan(opened, options)


def _refuse_taken(run: ConvertRun, store: Store, home: str, name: str, inputs: str) -> None:
    """A name that leads to an artifact of other inputs is moved only where that is allowed."""
    pointer = read_pointer(store, layout.current(home, name))
    if pointer is None or run.overwrite or pointer[0].get("inputs") == inputs:
        return
    raise ConfigurationError(
        f"the name {name!r} holds an artifact that was made from other inputs; set overwrite: true"
        " to move the name, or choose another in target.name",
        reason="TargetExists",
    )


def _point(
    run: ConvertRun, store: Store, home: str, name: str, inputs: str, manifest: Manifest
) -> None:
    """Move the name to what was published; the last thing that is done."""
    key = layout.current(home, name)
    value = {
        "digest": manifest.digest,
        "inputs": inputs,
        "key": layout.artifact(home, name, inputs),
        "format": run.target.format,
    }
    for _ in range(_POINTER_TRIES):
        pointer = read_pointer(store, key)
        if pointer is not None and pointer[0] == value:
            return
        _refuse_taken(run, store, home, name, inputs)
        try:
            move_pointer(store, key, value, expect=pointer[1] if pointer else None)
        except Conflict:
            continue
        return
    raise Conflict(f"{store.uri_of(key)}: others move it all the time; let one writer have it")


def _told(
    run: ConvertRun,
    store: Store,
    prefix: str,
    name: str,
    manifest: Manifest,
    source_digest: str,
    what: str,
) -> ConvertOutcome:
    facts: Mapping[str, Any] = manifest.metadata
    counts = ConversionCounts.model_validate(facts.get("counts", {}), strict=False)
    detected = facts.get("detected")
    artifact = Artifact(
        name=name,
        uri=store.uri_of(prefix),
        digest=manifest.digest,
        size=manifest.size_bytes,
        format=run.target.format,
    )
    return ConvertOutcome(
        f"{what}: {name} as {run.target.format}, {counts.tensors} tensors,"
        f" {manifest.size_bytes} bytes",
        (artifact,),
        Detected.model_validate(detected, strict=False) if detected else None,
        counts,
        source_digest,
    )
