"""One worker from Run to report: reads what is asked, has it done, tells what came of it.

It knows which stage answers which Run and which exit code each error ends with; it must not know
how a stage works. Heavy libraries are imported by the stage that needs them and only then.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Checkpoint
from kubebooth_api.door import explain
from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import (
    RUN,
    AnyRun,
    ConvertRun,
    FetchRun,
    PrepareRun,
    PurgeRun,
    RunReport,
    TrainRun,
)
from kubebooth_api.v1alpha1.conversion import ConversionCounts, Detected
from kubebooth_api.v1alpha1.session import DatasetStatus
from kubebooth_store import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Refused,
    Store,
    StoreError,
    Unsupported,
    open_store_from_env,
)
from pydantic import ValidationError

from kubebooth_trainer.errors import (
    ConfigurationError,
    InternalFault,
    OutOfMemory,
    StorageFault,
    WorkerError,
)
from kubebooth_trainer.report import MESSAGE_CHARACTERS, dumped
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.text import clipped

_LOG = logging.getLogger(__name__)
_MAX_RUN_BYTES = 1 << 20
STORE_TIMEOUT_S = 120.0
"""Longest wait for one request to the store with all its tries."""

Kind = Literal["Fetch", "Prepare", "Train", "Convert", "Purge"]


@dataclass(frozen=True)
class Answer:
    """What a stage made true; the fields are those of `RunReport`."""

    message: str
    dataset: DatasetStatus | None = None
    base_model: Artifact | None = None
    checkpoint: Checkpoint | None = None
    artifacts: tuple[Artifact, ...] = ()
    samples: str | None = None
    memory_profile: str | None = None
    detected: Detected | None = None
    counts: ConversionCounts | None = None
    class_images: Artifact | None = None
    concept_images: Artifact | None = None
    source_digest: str | None = None
    hints: tuple[str, ...] = ()


def read_run(path: Path) -> AnyRun:
    """The Run in a file. Raises `ConfigurationError` that names the field."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RUN_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name the file of the Run") from error
    if len(data) > _MAX_RUN_BYTES:
        raise ConfigurationError(f"{path}: a Run has at most {_MAX_RUN_BYTES} bytes")
    try:
        run = RUN.validate_json(data)
    except ValidationError as error:
        # Pydantic puts the kind into the path; the person who wrote the Run did not.
        told = explain(error, "run").replace(f"run.{kind_of(path)}.", "run.")
        raise ConfigurationError(f"{path.name} is no valid Run: {told}") from error
    try:
        layout.session(run.session.namespace, run.session.name)
    except ValueError as error:
        raise ConfigurationError(f"run.session: {error}") from error
    return run


def kind_of(path: Path) -> Kind:
    """The kind of a Run that may be malformed, for its report; `Prepare` where none is told."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_RUN_BYTES))
    except (OSError, ValueError, RecursionError):
        return "Prepare"
    kind = value.get("kind") if isinstance(value, dict) else None
    kinds: tuple[Kind, ...] = ("Fetch", "Prepare", "Train", "Convert", "Purge")
    return next((known for known in kinds if known == kind), "Prepare")


def work(
    run: AnyRun,
    *,
    reporter: Reporter,
    workdir: Path,
    started_at: datetime,
    store_timeout_s: float = STORE_TIMEOUT_S,
) -> RunReport:
    """Do what a Run asks and report it. Never raises a `WorkerError`; foreign errors pass."""
    store: Store | None = None
    try:
        store = _open(run, timeout_s=store_timeout_s)
        answer = _guarded(lambda opened: _dispatch(run, opened, reporter, workdir), store)
        report = succeeded(run.kind, answer, started_at=started_at)
    except WorkerError as error:
        report = failed(run.kind, error, reporter=reporter, started_at=started_at)
    if store is not None and isinstance(run, TrainRun):
        _keep(run, report, store)
    return report


def succeeded(kind: Kind, answer: Answer, *, started_at: datetime) -> RunReport:
    """The report of a Run that was done."""
    return RunReport(
        kind=kind,
        outcome="Succeeded",
        message=clipped(answer.message, MESSAGE_CHARACTERS),
        dataset=answer.dataset,
        base_model=answer.base_model,
        checkpoint=answer.checkpoint,
        artifacts=answer.artifacts,
        samples=answer.samples,
        memory_profile=answer.memory_profile,
        detected=answer.detected,
        counts=answer.counts,
        class_images=answer.class_images,
        concept_images=answer.concept_images,
        source_digest=answer.source_digest,
        hints=answer.hints,
        started_at=started_at,
        finished_at=now(),
    )


def failed(
    kind: Kind, error: WorkerError, *, reporter: Reporter | None, started_at: datetime
) -> RunReport:
    """The report of a Run that was not done; what is durable all the same is told."""
    status = reporter.status if reporter is not None else None
    return RunReport(
        kind=kind,
        outcome="Preempted" if error.exit_code == ExitCode.PREEMPTED else "Failed",
        reason=clipped(error.reason, 128),
        message=clipped(error.message, MESSAGE_CHARACTERS),
        exit_code=int(error.exit_code),
        checkpoint=status.checkpoint if status else None,
        samples=status.samples if status else None,
        started_at=started_at,
        finished_at=now(),
    )


def now() -> datetime:
    """UTC to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def storage_fault(error: StoreError) -> WorkerError:
    """What an error of the store means for the worker."""
    told = str(error)
    if isinstance(error, Refused):
        return ConfigurationError(told)
    if isinstance(error, Unsupported):
        return ConfigurationError(told, reason="StorageUnsupported")
    if isinstance(error, Denied):
        return StorageFault(
            f"{told}; check the keys in storage.credentialsSecretRef and their rights",
            reason="StorageDenied",
        )
    if isinstance(error, NotFound):
        return StorageFault(told, reason="StorageNotFound")
    if isinstance(error, Corrupt):
        return StorageFault(told, reason="StorageCorrupt")
    if isinstance(error, Conflict):
        return StorageFault(told, reason="StorageConflict")
    return StorageFault(told)


def _open(run: AnyRun, *, timeout_s: float) -> Store:
    try:
        return open_store_from_env(
            run.store.uri, run.store.endpoint, run.store.region, timeout_s=timeout_s
        )
    except StoreError as error:
        raise ConfigurationError(f"run.store: {error}") from error


def _guarded(stage: Callable[[Store], Answer], store: Store) -> Answer:
    try:
        return stage(store)
    except StoreError as error:
        raise storage_fault(error) from error
    except MemoryError as error:
        raise OutOfMemory("the worker ran out of memory; raise runtime.resources.memory") from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise StorageFault(
            "the scratch folder is full; raise runtime.resources.scratch", reason="ScratchFull"
        ) from error


def _dispatch(run: AnyRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    stages: dict[type[Any], Callable[[Any, Store, Reporter, Path], Answer]] = {
        FetchRun: _fetch,
        PrepareRun: _prepare,
        TrainRun: _train,
        ConvertRun: _convert,
        PurgeRun: _purge,
    }
    return stages[type(run)](run, store, reporter, workdir)


def _fetch(run: FetchRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    from kubebooth_trainer.fetch import fetch_model

    outcome = fetch_model(run, store=store, reporter=reporter, workdir=workdir)
    return Answer(outcome.message, base_model=outcome.model, detected=outcome.detected)


def _convert(run: ConvertRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    from kubebooth_trainer.convert.stage import convert

    outcome = convert(run, store=store, reporter=reporter, workdir=workdir)
    return Answer(
        outcome.message,
        artifacts=outcome.artifacts,
        detected=outcome.detected,
        counts=outcome.counts,
        source_digest=outcome.source_digest,
    )


def _purge(run: PurgeRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    from kubebooth_trainer.purge import purge

    return Answer(purge(run, store=store, reporter=reporter))


def _prepare(run: PrepareRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    from kubebooth_trainer.prepare.stage import prepare

    outcome = prepare(run, store=store, reporter=reporter, workdir=workdir)
    return Answer(
        outcome.message,
        dataset=outcome.dataset,
        base_model=outcome.base_model,
        class_images=outcome.class_images,
        concept_images=outcome.concept_images,
    )


def _train(run: TrainRun, store: Store, reporter: Reporter, workdir: Path) -> Answer:
    try:
        from kubebooth_trainer.train import train
    except ImportError as error:
        raise InternalFault(
            f"training needs {error.name or 'libraries'}, which this image lacks; install"
            " kubebooth[trainer]"
        ) from error
    asked = RUN.dump_json(run, by_alias=True, exclude_none=True, indent=1)
    store.write(_run_key(run, layout.RUN), asked, content_type="application/json")
    outcome = train(run, store=store, reporter=reporter, workdir=workdir)
    names = ", ".join(artifact.name for artifact in outcome.artifacts)
    return Answer(
        "; ".join([f"trained; published {names}" if names else "trained", *outcome.notes]),
        checkpoint=outcome.checkpoint,
        artifacts=outcome.artifacts,
        samples=outcome.samples,
        memory_profile=outcome.memory_profile,
        hints=outcome.hints,
    )


def _keep(run: TrainRun, report: RunReport, store: Store) -> None:
    """Leave the report in the run's folder too: a termination message dies with its pod."""
    if report.exit_code == ExitCode.STORAGE_ERROR:
        return
    try:
        data = dumped(report)
        store.write(_run_key(run, layout.REPORT), data, content_type="application/json")
    except StoreError as error:
        _LOG.warning("report is not kept in the store", extra={"why": error})


def _run_key(run: TrainRun, name: str) -> str:
    session = layout.session(run.session.namespace, run.session.name)
    return f"{layout.run(session, run.digest)}/{name}"
