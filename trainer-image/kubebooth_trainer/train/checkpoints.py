"""Durable training state: copied quickly, published by a thread, found again at start.

A checkpoint is one safetensors file, one JSON and the losses so far; nothing of it is pickled, so
a store cannot run code here. It must not know what the tensors mean.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from kubebooth_api import layout
from kubebooth_api.artifacts import Checkpoint, Manifest
from kubebooth_api.digests import canonical_json
from kubebooth_api.v1alpha1.training import Checkpoints as Asked
from kubebooth_store import (
    Conflict,
    Corrupt,
    NotFound,
    Store,
    StoreError,
    fetch,
    publish,
    read_manifest,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.train.record import Point
from kubebooth_trainer.train.stages import ORDER, Position, Stage, fits, rank

TENSORS, STATE = "state.safetensors", "state.json"
LOSSES, VALIDATIONS = "losses.json", "validation.json"
VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Everything that training needs to go on from a position."""

    position: Position
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, float]
    losses: tuple[Point, ...]
    validations: tuple[Point, ...] = ()
    validation_loss: float | None = None
    """Loss on held-out pictures of just this state, where it was measured."""


@dataclass(frozen=True)
class _Found:
    prefix: str
    position: Position
    manifest: Manifest


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the last upload."""

    def __init__(
        self,
        store: Store,
        *,
        run_prefix: str,
        run_digest: str,
        folder: Path,
        asked: Asked,
        on_saved: Callable[[Checkpoint], None],
    ) -> None:
        self._store, self._run_prefix, self._run_digest = store, run_prefix, run_digest
        self._folder, self._asked, self._on_saved = folder, asked, on_saved
        self._uploader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[Checkpoint] | None = None
        self._saving: State | None = None
        self._held: dict[str, Tensor] = {}
        self._kept: list[str] = []
        self._measured: dict[str, float] = {}
        self._broken: set[str] = set()
        self.newest: Checkpoint | None = None
        """Newest durable checkpoint."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._uploader.shutdown(wait=True)

    def farthest(self, stages: tuple[Stage, ...]) -> Checkpoint | None:
        """The farthest checkpoint that fits these targets, as its manifest describes it."""
        fitting = [one for one in self._listed() if fits(stages, one.position)]
        if not fitting:
            return None
        last = max(fitting, key=lambda one: rank(one.position))
        return self._described(last.prefix, last.position, last.manifest)

    def resume(self, stages: tuple[Stage, ...]) -> State | None:
        """The farthest sound state that fits these targets, or None.

        A broken one is passed over with a warning. Raises `StoreError` when the store is away.
        """
        found = self._listed()
        self._kept = [one.prefix for one in sorted(found, key=lambda f: f.manifest.created_at)]
        self._measured = {
            one.prefix: loss
            for one in found
            if (loss := _validation_loss(one.manifest.metadata)) is not None
        }
        fitting = [one for one in found if fits(stages, one.position)]
        for one in sorted(fitting, key=lambda f: rank(f.position), reverse=True):
            try:
                state = self._load(one)
            except (Corrupt, NotFound, DataError) as error:
                log.warning("checkpoint %s is broken and passed over: %s", one.prefix, error)
                self._broken.add(one.prefix)
                self._kept.remove(one.prefix)
                continue
            self._tell(self._described(one.prefix, one.position, one.manifest))
            return state
        return None

    def save(self, state: State) -> None:
        """Copy the state and publish it in the background; waits for the one before.

        Raises what the publishing of the one before raised.
        """
        self.wait()
        copied = replace(state, tensors=self._copied(state.tensors))
        self._saving = copied
        self._running = self._uploader.submit(self._publish, copied)

    def wait(self) -> None:
        """Wait until the newest saved state is durable; what could not be published is tried once
        more, and raises then."""
        if self._running is None or self._saving is None:
            return
        running, self._running = self._running, None
        try:
            running.result()
        except (StoreError, OSError) as error:
            # The copy is still held, so nothing is lost by trying again.
            log.warning("a checkpoint was not saved and is tried once more: %s", error)
            self._uploader.submit(self._publish, self._saving).result()

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy into buffers that are kept, since allocating costs more than copying."""
        copies: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            held = self._held.get(name)
            if held is None or held.shape != tensor.shape:
                held = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name] = held.copy_(tensor.detach())
        self._held = copies
        return copies

    def _publish(self, state: State) -> Checkpoint:
        position = state.position
        prefix = layout.checkpoint(self._run_prefix, position.name, position.step)
        folder = self._folder / "saving"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file(dict(state.tensors), folder / TENSORS)
        facts = {
            "version": VERSION,
            "run": self._run_digest,
            "position": asdict(position),
            "facts": dict(state.facts),
        }
        (folder / STATE).write_bytes(canonical_json(facts))
        (folder / LOSSES).write_bytes(canonical_json([list(point) for point in state.losses]))
        if state.validations:
            measured = [list(point) for point in state.validations]
            (folder / VALIDATIONS).write_bytes(canonical_json(measured))
        manifest = self._published(prefix, folder, state)
        shutil.rmtree(folder)
        saved = self._described(prefix, position, manifest)
        self._tell(saved)
        self._measured.pop(prefix, None)
        if state.validation_loss is not None:
            self._measured[prefix] = state.validation_loss
        self._retire(prefix)
        return saved

    def _published(self, prefix: str, folder: Path, state: State) -> Manifest:
        metadata: dict[str, Any] = {"run": self._run_digest, **asdict(state.position)}
        if state.validation_loss is not None:
            metadata["validation_loss"] = state.validation_loss
        if prefix in self._broken:
            self._store.delete_prefix(prefix)
        try:
            return publish(self._store, prefix, folder, kind="checkpoint", metadata=metadata)
        except Conflict:
            # The same step of another life of this run, on other hardware or to other targets.
            self._store.delete_prefix(prefix)
            return publish(self._store, prefix, folder, kind="checkpoint", metadata=metadata)

    def _retire(self, newest: str) -> None:
        """Delete the oldest, now that a newer one is durable."""
        self._kept = [*(prefix for prefix in self._kept if prefix != newest), newest]
        best = self._best()
        passing = [prefix for prefix in self._kept if not self._stays(prefix)]
        for prefix in passing[: -self._asked.keep_last]:
            if prefix in best:
                continue
            self._store.delete_prefix(prefix)
            self._kept.remove(prefix)

    def _best(self) -> list[str]:
        """Checkpoints of least validation loss, as many as are asked for; ties go to the older."""
        measured = [prefix for prefix in self._kept if prefix in self._measured]
        return sorted(measured, key=lambda p: (self._measured[p], p))[: self._asked.keep_best]

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Updates of the denoiser of which a checkpoint stands in the store."""
        names = [prefix.rsplit("/", 1)[1].rsplit("-", 1) for prefix in self._kept]
        return tuple(int(step) for stage, step in names if stage == "Denoiser")

    def _stays(self, prefix: str) -> bool:
        """Whether a checkpoint is kept for good."""
        stage, step = prefix.rsplit("/", 1)[1].rsplit("-", 1)
        every = self._asked.keep_every_steps
        at = stage == "Denoiser" and int(step) in self._asked.at_steps
        return at or (every is not None and int(step) % every == 0)

    def _tell(self, checkpoint: Checkpoint) -> None:
        self.newest = checkpoint
        self._on_saved(checkpoint)

    def _described(self, prefix: str, position: Position, manifest: Manifest) -> Checkpoint:
        return Checkpoint(
            stage=position.name,
            step=position.step,
            uri=self._store.uri_of(prefix),
            digest=manifest.digest,
            size=manifest.size_bytes,
            created_at=manifest.created_at,
        )

    def _listed(self) -> list[_Found]:
        root = f"{self._run_prefix}/checkpoints"
        names = {
            entry.key.removeprefix(f"{root}/").split("/")[0] for entry in self._store.list(root)
        }
        found = []
        for name in sorted(names):
            prefix = f"{root}/{name}"
            try:
                manifest = read_manifest(self._store, prefix)
            except Corrupt as error:
                log.warning("checkpoint %s is broken and passed over: %s", prefix, error)
                self._broken.add(prefix)
                continue
            position = _position(manifest.metadata) if manifest else None
            if manifest is None or position is None or manifest.kind != "checkpoint":
                log.warning("checkpoint %s was never finished and is passed over", prefix)
                continue
            if manifest.metadata.get("run") == self._run_digest:
                found.append(_Found(prefix, position, manifest))
        return found

    def _load(self, found: _Found) -> State:
        """Fetch and verify. Raises `Corrupt`, `NotFound` or `DataError`."""
        folder = self._folder / "resuming"
        shutil.rmtree(folder, ignore_errors=True)
        fetch(self._store, found.prefix, folder, expect_digest=found.manifest.digest)
        try:
            told = json.loads((folder / STATE).read_bytes())
            losses, measured = _points(folder / LOSSES), _points(folder / VALIDATIONS, absent=True)
            tensors = load_file(folder / TENSORS)
            facts = {str(k): float(v) for k, v in told["facts"].items()}
            if told["version"] != VERSION or _position(told["position"]) != found.position:
                raise DataError(f"{STATE} does not belong to this checkpoint")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DataError(f"it cannot be read ({error})") from error
        shutil.rmtree(folder)
        return State(found.position, tensors, facts, losses, measured)


def _points(path: Path, *, absent: bool = False) -> tuple[Point, ...]:
    """Points from JSON; none where the file may be absent. Raises `OSError` or `ValueError`."""
    if absent and not path.exists():
        return ()
    points = json.loads(path.read_bytes())
    return tuple(Point(str(s), int(n), float(x), float(r)) for s, n, x, r in points)


def _validation_loss(metadata: Mapping[str, Any]) -> float | None:
    loss = metadata.get("validation_loss")
    return float(loss) if isinstance(loss, int | float) and loss == loss else None


def _position(told: Mapping[str, Any]) -> Position | None:
    """A position from JSON, or None when it is none."""
    counts = [told.get("step"), told.get("text_steps"), told.get("concept_steps", 0)]
    step, text_steps, concept_steps = (n if isinstance(n, int) else -1 for n in counts)
    if min(step, text_steps, concept_steps) < 0:
        return None
    for name in ORDER:
        if told.get("name") == name:
            return Position(name, step, text_steps, concept_steps)
    return None


def with_prefix(kind: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of one kind of tensors in a checkpoint, such as `weights/denoiser.conv_in.weight`."""
    return {f"{kind}/{name}": tensor for name, tensor in named.items()}


def without_prefix(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one kind, by their own names."""
    start = f"{kind}/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
