"""The trained model leaves as a Diffusers layout, immutable, with a pointer to the newest."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, FileEntry, files_digest
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.session import Output
from kubebooth_store import (
    Conflict,
    Corrupt,
    Store,
    move_pointer,
    publish,
    read_manifest,
    read_pointer,
)

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Model
from kubebooth_trainer.train.card import model_card
from kubebooth_trainer.train.dataset import Snapshot
from kubebooth_trainer.train.lora import LowRank
from kubebooth_trainer.train.lora_files import About, file_name, write_lora
from kubebooth_trainer.train.stages import Stage, kept_parts
from kubebooth_trainer.train.weights import Weights

FALLBACK = Output(name="diffusers")
POINTER_TRIES = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A layout on disk, ready to be published."""

    output: Output
    folder: Path


def wanted_outputs(run: TrainRun) -> tuple[Output, ...]:
    """The Diffusers outputs asked for, at least one: other forms are converted from it."""
    asked = tuple(output for output in run.outputs if output.format == "Diffusers")
    return asked or (FALLBACK,)


def reached(stages: tuple[Stage, ...]) -> dict[str, int]:
    """Updates of each stage that the finished model holds."""
    return {stage.name: stage.steps for stage in stages}


def find_published(
    run: TrainRun, store: Store, *, run_prefix: str, stages: tuple[Stage, ...]
) -> tuple[Artifact, ...] | None:
    """The artifacts of a finished training to these targets, or None when one is missing."""
    found: list[Artifact] = []
    for output in wanted_outputs(run):
        try:
            pointer = read_pointer(store, layout.current(run_prefix, output.name))
            if pointer is None or not _same(pointer[0], run, output, stages):
                return None
            prefix = layout.artifact(run_prefix, output.name, str(pointer[0].get("digest")))
            manifest = read_manifest(store, prefix)
        except (Corrupt, ValueError) as error:
            log.warning("artifact %s is broken and made again: %s", output.name, error)
            return None
        if manifest is None or manifest.digest != pointer[0].get("digest"):
            return None
        found.append(
            Artifact(
                name=output.name,
                uri=store.uri_of(prefix),
                digest=manifest.digest,
                size=manifest.size_bytes,
                format="Diffusers",
            )
        )
    return tuple(found)


def build(
    run: TrainRun,
    model: Model,
    weights: Weights,
    *,
    snapshot: Snapshot,
    stages: tuple[Stage, ...],
    folder: Path,
) -> tuple[Built, ...]:
    """Write every wanted layout below `folder`.

    Raises `ConfigurationError` when weights are not finite: half a model is never published.
    """
    for part in model.parts:
        for name, weight in weights.of(part).items():
            if not torch.isfinite(weight).all():
                raise ConfigurationError(
                    f"training ended with NaN or infinite weights in {name}; lower the"
                    " learning rates and start a new run with rerun",
                    reason="WeightsNotFinite",
                )
    built = []
    for output in wanted_outputs(run):
        place = folder / output.name
        lora_file = file_name(snapshot) if isinstance(weights, LowRank) else None
        card = model_card(
            run, output, snapshot=snapshot, reached=reached(stages), lora_file=lora_file
        )
        if isinstance(weights, LowRank):
            layers = [layer for layer in weights.layers() if layer.part in kept_parts(stages)]
            about = About(run, snapshot, config=_config(model.parts["denoiser"]))
            write_lora(place, layers, about, precision=output.precision)
        else:
            model.write(place, precision=output.precision)
        (place / "README.md").write_text(card, "utf-8")
        built.append(Built(output, place))
    return tuple(built)


def _config(network: Any) -> dict[str, Any]:
    return dict(network.config)


def publish_artifact(
    run: TrainRun,
    store: Store,
    built: Built,
    *,
    run_prefix: str,
    stages: tuple[Stage, ...],
    given_up: tuple[str, ...] = (),
) -> Artifact:
    """Publish one layout under its digest, then move the pointer. `given_up` tells what a lack of
    memory changed of the result."""
    digest = folder_digest(built.folder)
    prefix = layout.artifact(run_prefix, built.output.name, digest)
    metadata = _facts(run, built.output, stages)
    if given_up:
        metadata["memoryProfile"] = list(given_up)
    manifest = publish(store, prefix, built.folder, kind="artifact", metadata=metadata)
    _point(store, layout.current(run_prefix, built.output.name), {"digest": digest, **metadata})
    return Artifact(
        name=built.output.name,
        uri=store.uri_of(prefix),
        digest=manifest.digest,
        size=manifest.size_bytes,
        format="Diffusers",
    )


def folder_digest(folder: Path) -> str:
    """The digest that publishing a folder will give."""
    files = tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=_sha256(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return files_digest(files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(run: TrainRun, output: Output, stages: tuple[Stage, ...]) -> dict[str, Any]:
    return {
        "run": run.digest,
        "baseModel": run.base_model.digest,
        "dataset": run.dataset.digest,
        "variant": run.variant,
        "precision": output.precision,
        "updates": reached(stages),
    }


def _same(
    pointer: Mapping[str, Any], run: TrainRun, output: Output, stages: tuple[Stage, ...]
) -> bool:
    wanted = _facts(run, output, stages)
    return json.dumps({key: pointer.get(key) for key in wanted}, sort_keys=True) == json.dumps(
        wanted, sort_keys=True
    )


def _point(store: Store, key: str, value: dict[str, Any]) -> None:
    """Move the pointer, whoever else may be moving it."""
    for attempt in range(POINTER_TRIES):
        try:
            present = read_pointer(store, key)
        except Corrupt:
            store.delete(key)
            continue
        if present is not None and present[0] == value:
            return
        try:
            move_pointer(store, key, value, expect=present[1] if present else None)
        except Conflict:
            if attempt + 1 == POINTER_TRIES:
                raise
            continue
        return
