"""What any status must remember once Jobs are gone, and how it grows: tries, retries, fetches.

Every function takes the remembered facts and gives the new ones; none reads phase or conditions.
Facts carry the digest of what they were made from, so stale ones are recognised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from kubebooth_api.artifacts import Artifact
from kubebooth_api.exitcodes import FINAL
from kubebooth_api.runs import WorkerStatus
from kubebooth_api.v1alpha1.session import Attempt, LastFailure, Progress, Retry
from kubebooth_api.v1alpha1.session_status import Fetched

from kubebooth_operator.jobs.failures import Failure
from kubebooth_operator.jobs.readings import F, Job, Pod
from kubebooth_operator.jobs.work import CONVERT, FETCH, PREPARE, PURGE, TRAIN

LONGEST_BACKOFF_S = 600
PROGRESS_PAUSE_S = 10
"""Least seconds between two progress readings that are written down."""
MOST_ATTEMPTS = 32
_OWN_STAGES = {FETCH, PREPARE, CONVERT, PURGE, "Export"}
"""Stages of one name; all others are training's."""


def stage_of(progress: Progress) -> str:
    """Which worker's stage a progress speaks of."""
    return progress.stage if progress.stage in _OWN_STAGES else TRAIN


def fetched(facts: F, key: str) -> Artifact | None:
    """The model that was fetched under a key, if it was."""
    return next((f.artifact for f in facts.fetched if f.input_digest == key), None)


def with_fetched(facts: F, key: str, artifact: Artifact | None) -> F:
    """Remember a fetched model; None changes nothing."""
    if artifact is None or fetched(facts, key) == artifact:
        return facts
    fetched_now = [f for f in facts.fetched if f.input_digest != key]
    fetched_now.append(Fetched(input_digest=key, artifact=artifact))
    return facts.model_copy(update={"fetched": tuple(fetched_now)})


def only_fetched(facts: F, keys: Iterable[str]) -> F:
    """Forget fetched models that the spec does not name any more."""
    wanted = set(keys)
    if all(entry.input_digest in wanted for entry in facts.fetched):
        return facts
    kept = [entry for entry in facts.fetched if entry.input_digest in wanted]
    return facts.model_copy(update={"fetched": tuple(kept)})


def with_work(facts: F, digest: str, *, now: datetime) -> F:
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


def with_failure(facts: F, job: Job, failure: Failure, retry: Retry, *, now: datetime) -> F:
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


def has_failed(facts: F, digest: str, retry: Retry) -> bool:
    """Whether no further try of this work is due."""
    if facts.work_digest != digest or facts.retries == 0:
        return False
    last = facts.last_failure
    return facts.retries > retry.limit or (last is not None and last.exit_code in FINAL)


def with_progress(facts: F, worker: WorkerStatus | None, stage: str) -> F:
    """Take how far the running worker of a stage is, at most every ten seconds."""
    if worker is None or stage_of(worker.progress) != stage:
        return facts
    if not _is_news(facts.progress, worker.progress):
        return facts
    return facts.model_copy(update={"progress": _finite(worker.progress)})


def _is_news(known: Progress | None, told: Progress) -> bool:
    if known is None or (known.stage, known.total_steps) != (told.stage, told.total_steps):
        return True
    apart_s = abs((told.updated_at - known.updated_at).total_seconds())
    return apart_s >= PROGRESS_PAUSE_S


def _finite(progress: Progress) -> Progress:
    # A diverged loss is not JSON; the worker's own log tells of it.
    bad = [
        name
        for name in ("loss", "learning_rate", "images_per_second", "validation_loss")
        if (value := getattr(progress, name)) is not None and not math.isfinite(value)
    ]
    return progress.model_copy(update=dict.fromkeys(bad))


def with_attempts(facts: F, pods: Iterable[Pod]) -> F:
    """One entry for each pod that started, newest last; a pod that vanished was interrupted."""
    known = {entry.pod: entry for entry in facts.attempts}
    number = max((entry.number for entry in facts.attempts), default=0)
    seen = {pod.name: pod for pod in pods}
    for pod in seen.values():
        if pod.stage in {"", PURGE} or not (pod.started_at or pod.ended):
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


def _was_dropped(facts: F, pod: Pod) -> bool:
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
