"""What a session's status must remember once Jobs are gone, and how it grows.

Every function takes the remembered facts and gives the new ones; none reads phase or conditions.
Facts carry the digest of what they were made from, so stale ones are recognised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from kubebooth_api.exitcodes import FINAL
from kubebooth_api.runs import RunReport, TrainRun, WorkerStatus
from kubebooth_api.v1alpha1.session import (
    Attempt,
    DreamboothSessionStatus,
    LastFailure,
    Progress,
    Retry,
    RunStatus,
)

from kubebooth_operator.session.asked import PREPARE, Work, run_uri
from kubebooth_operator.session.failures import Failure
from kubebooth_operator.session.readings import Job, Pod

LONGEST_BACKOFF_S = 600
PROGRESS_PAUSE_S = 10
"""Least seconds between two progress readings that are written down."""
MOST_ATTEMPTS = 32

Facts = DreamboothSessionStatus


def is_prepared(facts: Facts, work: Work) -> bool:
    """Whether the snapshot and the base model are those that the spec asks for."""
    dataset = facts.dataset
    return (
        dataset is not None and dataset.input_digest == work.target and facts.base_model is not None
    )


def is_trained(facts: Facts, work: Work) -> bool:
    """Whether what the spec asks for was published."""
    return facts.run is not None and facts.run.completed_target == work.target


def with_prepared(facts: Facts, work: Work, report: RunReport | None) -> Facts:
    """Remember a succeeded prepare; an incomplete report changes nothing."""
    if report is None or report.dataset is None or report.base_model is None:
        return facts
    dataset = report.dataset.model_copy(update={"input_digest": work.target})
    return facts.model_copy(update={"dataset": dataset, "base_model": report.base_model})


def with_run(facts: Facts, work: Work) -> Facts:
    """Turn to a train run. Another run starts without the old one's checkpoint; its artifacts stay
    until there are newer ones."""
    run = work.run
    if not isinstance(run, TrainRun):
        return facts
    uri = run_uri(work)
    if facts.run is not None and (facts.run.digest, facts.run.uri) == (run.digest, uri):
        return facts
    return facts.model_copy(
        update={
            "run": RunStatus(digest=run.digest, uri=uri, base_model_digest=run.base_model.digest),
            "checkpoint": None,
            "samples": None,
            "progress": None,
        }
    )


def with_trained(facts: Facts, work: Work, report: RunReport | None) -> Facts:
    """Remember a succeeded training; a report without artifact changes nothing."""
    if report is None or not report.artifacts or facts.run is None:
        return facts
    done = Progress(
        stage="Publish", step=1, total_steps=1, percentage=100, updated_at=report.finished_at
    )
    return facts.model_copy(
        update={
            "run": facts.run.model_copy(update={"completed_target": work.target}),
            "artifacts": report.artifacts,
            "checkpoint": report.checkpoint or facts.checkpoint,
            "samples": report.samples or facts.samples,
            "progress": done,
            "completed_at": report.finished_at,
        }
    )


def with_work(facts: Facts, digest: str, *, now: datetime) -> Facts:
    """Turn to some work: other work than before starts without retries, and work after completion
    starts another round."""
    update: dict[str, object] = {}
    if facts.work_digest != digest:
        update |= {"work_digest": digest, "retries": 0, "next_retry_at": None}
    if facts.completed_at is not None:
        update |= {
            "completed_at": None,
            "started_at": now,
            "last_failure": None,
            "progress": None,
        }
    if facts.started_at is None:
        update["started_at"] = now
    return facts.model_copy(update=update) if update else facts


def with_failure(facts: Facts, job: Job, failure: Failure, retry: Retry, *, now: datetime) -> Facts:
    """Count a Job's failure once, and say when the next try starts."""
    retries = facts.retries + 1 if failure.counts else facts.retries
    final = failure.exit_code in FINAL
    wait_s = min(retry.backoff_seconds * 2 ** min(max(retries - 1, 0), 16), LONGEST_BACKOFF_S)
    again = not final and retries <= retry.limit
    return facts.model_copy(
        update={
            "counted_job": job.uid,
            "retries": retries,
            "next_retry_at": now + timedelta(seconds=wait_s) if again else None,
            "last_failure": LastFailure(
                reason=failure.reason[:128],
                message=failure.message[:2048],
                exit_code=failure.exit_code,
                at=job.finished_at or now,
            ),
        }
    )


def has_failed(facts: Facts, digest: str, retry: Retry) -> bool:
    """Whether no further try of this work is due."""
    if facts.work_digest != digest or facts.retries == 0:
        return False
    last = facts.last_failure
    return facts.retries > retry.limit or (last is not None and last.exit_code in FINAL)


def with_worker(facts: Facts, worker: WorkerStatus | None, stage: str) -> Facts:
    """Take what the running worker says, progress at most every ten seconds."""
    if worker is None or (worker.progress.stage == PREPARE) != (stage == PREPARE):
        return facts
    update: dict[str, object] = {}
    if _is_news(facts.progress, worker.progress):
        update["progress"] = _finite(worker.progress)
    if stage != PREPARE:
        known, told = facts.checkpoint, worker.checkpoint
        if told is not None and (known is None or told.created_at > known.created_at):
            update["checkpoint"] = told
        if worker.samples is not None:
            update["samples"] = worker.samples
    return facts.model_copy(update=update) if update else facts


def _is_news(known: Progress | None, told: Progress) -> bool:
    if known is None or (known.stage, known.total_steps) != (told.stage, told.total_steps):
        return True
    apart_s = abs((told.updated_at - known.updated_at).total_seconds())
    return apart_s >= PROGRESS_PAUSE_S


def _finite(progress: Progress) -> Progress:
    # A diverged loss is not JSON; the worker's own log tells of it.
    bad = [
        name
        for name in ("loss", "learning_rate", "images_per_second")
        if (value := getattr(progress, name)) is not None and not math.isfinite(value)
    ]
    return progress.model_copy(update=dict.fromkeys(bad))


def with_attempts(facts: Facts, pods: Iterable[Pod]) -> Facts:
    """One entry for each pod that started, newest last; a pod that vanished was interrupted."""
    known = {entry.pod: entry for entry in facts.attempts}
    number = max((entry.number for entry in facts.attempts), default=0)
    seen = {pod.name: pod for pod in pods}
    for pod in seen.values():
        if pod.stage not in {"Prepare", "Train"} or not (pod.started_at or pod.ended):
            continue
        before = known.get(pod.name)
        if before is not None and before.outcome != "Running":
            continue
        if before is None and _was_dropped(facts, pod):
            continue
        number = number if before else number + 1
        known[pod.name] = _attempt(pod, before.number if before else number)
    for name, entry in known.items():
        if entry.outcome == "Running" and name not in seen:
            known[name] = entry.model_copy(update={"outcome": "Preempted", "reason": "Stopped"})
    attempts = tuple(sorted(known.values(), key=lambda entry: entry.number))[-MOST_ATTEMPTS:]
    return facts if attempts == facts.attempts else facts.model_copy(update={"attempts": attempts})


def _was_dropped(facts: Facts, pod: Pod) -> bool:
    """Whether the pod had an entry that made room for newer ones."""
    if len(facts.attempts) < MOST_ATTEMPTS or pod.started_at is None:
        return False
    newest = max((e.started_at for e in facts.attempts if e.started_at), default=None)
    return newest is not None and pod.started_at <= newest


def _attempt(pod: Pod, number: int) -> Attempt:
    outcome = "Running"
    if pod.ended:
        outcome = "Succeeded" if pod.phase == "Succeeded" else "Failed"
    if pod.ended and pod.preempted:
        outcome = "Preempted"
    profile = pod.report.memory_profile if pod.report else None
    return Attempt.model_validate(
        {
            "number": number,
            "stage": pod.stage,
            "outcome": outcome,
            "reason": "" if outcome in {"Running", "Succeeded"} else pod.reason[:128],
            "started_at": pod.started_at,
            "finished_at": pod.finished_at if pod.ended else None,
            "memory_profile": profile,
            "pod": pod.name,
        }
    )
