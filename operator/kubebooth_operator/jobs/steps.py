"""One piece of work and what is seen of its Job → the next step towards it. Pure.

Knows how Jobs are started, replaced, retried and stopped; not which stage comes after which. At
most one Job of a stage exists, and a new one is asked for only when the old one and its pods are
gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Generic

from kubebooth_api.digests import digest_json
from kubebooth_api.runs import RunReport
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session import Retry

from kubebooth_operator.doors import ChildRef, Stalled, Waiting
from kubebooth_operator.jobs import children, facts, failures, holdups, readings
from kubebooth_operator.jobs.readings import F, Job, Seen
from kubebooth_operator.jobs.situation import HELD, NOT_YET, Kind, Quota, Situation
from kubebooth_operator.jobs.work import (
    CONVERT,
    FETCH,
    PREPARE,
    PURGE,
    SESSION,
    TRAIN,
    Place,
    Work,
)
from kubebooth_operator.settings import Settings

LAST_WORD_S = 30
"""How long the pod's last word may lag behind its Job's end."""
SOON_S = 5.0
AT_ONCE_S = 0.1
"""Look again as soon as our own writes are known: they send us no event."""

_DOES = {
    FETCH: "the worker brings the model into the store",
    PREPARE: "the worker checks the pictures and the base model",
    TRAIN: "the worker trains the model",
    CONVERT: "the worker converts the model",
    PURGE: "the worker deletes what was left in the store",
}
_DOING = {
    FETCH: "Fetching",
    PREPARE: "Preparing",
    TRAIN: "Training",
    CONVERT: "Converting",
    PURGE: "Purging",
}


@dataclass(frozen=True)
class Terms:
    """What an object says about all its Jobs."""

    suspend: bool
    retry: Retry
    runtime: Runtime


@dataclass(frozen=True)
class Context(Generic[F]):
    """What every step is decided with."""

    seen: Seen[F]
    terms: Terms
    place: Place
    settings: Settings
    now: datetime


@dataclass(frozen=True)
class Step(Generic[F]):
    """What to do now, and what is known after it."""

    situation: Situation
    facts: F
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[ChildRef, ...] = ()
    listens: bool = False
    """Whether a worker of this work runs and can be asked."""
    requeue_after_s: float | None = None


@dataclass(frozen=True)
class _Pursuit(Generic[F]):
    """One work, its Job and the context, together."""

    context: Context[F]
    work: Work
    facts: F
    job: Job | None
    series: str

    def step(self, kind: Kind, reason: str, message: str, **more: Any) -> Step[F]:
        """A step in a situation of this work."""
        quota = more.pop("quota", NOT_YET)
        situation = Situation(kind, reason, message, stage=self.work.stage, quota=quota)
        return Step(situation, self.facts, **more)


def series_of(seen: Seen[F], work: Work) -> str:
    """Identity of a series of tries: other work is another, and so is a retry asked by a person."""
    return digest_json({"work": work.digest, "retry": seen.retry_token})


def answer(seen: Seen[F], work: Work) -> RunReport | None:
    """The report of a completed Job that reached what the work aims at."""
    job = seen.jobs.get(work.stage)
    if job is None or job.result != "Complete" or job.target != work.target:
        return None
    return job.report


def pursue(context: Context[F], known: F, work: Work) -> Step[F]:
    """The next step towards the work. `known` must speak of this series of tries."""
    seen = context.seen
    job = seen.jobs.get(work.stage)
    pursuit = _Pursuit(context, work, known, job, series_of(seen, work))
    others = [j for j in seen.jobs.values() if j.stage != work.stage and not j.finished]
    if others:
        return _stop(pursuit, others, "Replacing", "an earlier worker saves its state and stops")
    if job is not None and job.finished and not job.terminating and _is_spent(pursuit, job):
        counted = _count(pursuit, job)
        if counted is None:
            message = "the Job has ended; its worker's last word is awaited"
            return pursuit.step(Kind.WORKING, "Ending", message, requeue_after_s=SOON_S)
        pursuit = counted
    if facts.has_failed(pursuit.facts, pursuit.series, context.terms.retry) and (
        job is None or job.finished
    ):
        return _failed(pursuit)
    if context.terms.suspend and work.stage != PURGE:
        return _suspend(pursuit)
    if job is None:
        return _begin(pursuit)
    if job.terminating:
        return _stop(pursuit, [job], "Replacing", "an earlier worker saves its state and stops")
    if not job.finished:
        return _watch(pursuit, job)
    return _again(pursuit, job)


def hold(context: Context[F], known: F, waiting: Waiting, *, stage: str) -> Step[F]:
    """Nothing can be asked of a worker yet: stop those of an earlier spec and wait."""
    running = [job for job in context.seen.jobs.values() if not job.finished]
    alive = [pod for pod in context.seen.pods if not pod.ended]
    if running or alive:
        message = "an earlier worker saves its state and stops"
        situation = Situation(Kind.STOPPING, "Replacing", message, stage=stage)
        return Step(situation, known, delete=stop_all(running))
    if context.terms.suspend:
        message = f"suspended; {waiting.message}"
        return Step(Situation(Kind.SUSPENDED, "Suspended", message, stage=stage), known)
    situation = Situation(Kind.HELD_UP, waiting.reason, waiting.message, stage=stage)
    return Step(situation, known, requeue_after_s=waiting.delay_s)


def tidy(
    context: Context[F], step: Step[F], ended_at: datetime | None, *, ttl_s: int | None
) -> Step[F]:
    """Delete finished Jobs when their time is over. `ended_at` is None until the status tells of
    the end: before that the Jobs are its only witnesses."""
    jobs: Sequence[Job] = tuple(context.seen.jobs.values())
    if ttl_s is None or not jobs:
        return step
    if ended_at is None:
        return replace(step, requeue_after_s=AT_ONCE_S)
    left_s = (ended_at + timedelta(seconds=ttl_s) - context.now).total_seconds()
    if left_s > 0:
        return replace(step, requeue_after_s=left_s)
    others: tuple[ChildRef, ...] = tuple(ref for ref in step.delete if ref.kind != "Job")
    return replace(step, delete=(*stop_all(jobs), *others))


def unused_config_maps(seen: Seen[F], step: Step[F]) -> tuple[ChildRef, ...]:
    """Run ConfigMaps that no Job of now or of this step mounts."""
    used = {job.config_map for job in seen.jobs.values()}
    used |= {manifest["metadata"]["name"] for manifest in step.apply}
    return tuple(ref for name, ref in seen.config_maps.items() if name not in used)


def stalled(seen: Seen[F], error: Stalled) -> Situation:
    """What is wrong with a spec; a worker that runs was asked for by an earlier, valid one."""
    message = error.message
    if any(not job.finished for job in seen.jobs.values()):
        message = f"{message[:900]} (the running worker is left alone and follows the earlier spec)"
    return Situation(Kind.STALLED, error.reason, message)


def look_again(
    apply: Sequence[object], delete: Sequence[object], *, after_s: float | None
) -> float | None:
    """When to look again: at once after children were touched. A child may turn out to be there
    or gone already, and then nobody else would tell us."""
    return AT_ONCE_S if apply or delete else after_s


def stop_all(jobs: Iterable[Job]) -> tuple[ChildRef, ...]:
    """References to delete the Jobs that are not being deleted already."""
    return tuple(job.ref for job in jobs if not job.terminating)


def _is_spent(pursuit: _Pursuit[F], job: Job) -> bool:
    """Whether a finished Job was a try of this series; one that reached the target and told so is
    never asked about here."""
    if job.result == "Complete":
        return job.target == pursuit.work.target
    return job.series == pursuit.series


def _count(pursuit: _Pursuit[F], job: Job) -> _Pursuit[F] | None:
    """Count the Job's failure; None while its pod has not told yet."""
    if pursuit.facts.counted_job == job.uid:
        return pursuit
    now = pursuit.context.now
    failure = failures.of(job) if job.result == "Failed" else None
    if failure is None:
        if job.finished_at and now - job.finished_at < timedelta(seconds=LAST_WORD_S):
            return None
        failure = failures.silent(job)
    retry = pursuit.context.terms.retry
    return replace(pursuit, facts=facts.with_failure(pursuit.facts, job, failure, retry, now=now))


def _failed(pursuit: _Pursuit[F]) -> Step[F]:
    last, retries = pursuit.facts.last_failure, pursuit.facts.retries
    reason = last.reason if last else "Failed"
    message = last.message if last else f"{pursuit.work.stage} failed"
    tries = f"after {retries} failed tries; " if retries > 1 else ""
    seen = pursuit.context.seen
    name = seen.name if seen.kind == SESSION else f"mconv/{seen.name}"
    hint = f" ({tries}change the spec, or mend the cause and run `kubectl kubebooth retry {name}`)"
    return pursuit.step(Kind.FAILED, reason, f"{message[:800]}{hint}")


def _suspend(pursuit: _Pursuit[F]) -> Step[F]:
    seen = pursuit.context.seen
    running = [job for job in seen.jobs.values() if not job.finished]
    alive = [pod.name for pod in seen.pods if not pod.ended]
    if running or alive:
        return _stop(pursuit, running, "Suspending", "the worker saves its state and stops")
    message = "suspended; set spec.suspend to false to go on"
    return pursuit.step(Kind.SUSPENDED, "Suspended", message)


def _stop(pursuit: _Pursuit[F], jobs: Iterable[Job], reason: str, message: str) -> Step[F]:
    return pursuit.step(Kind.STOPPING, reason, message, delete=stop_all(jobs))


def _begin(pursuit: _Pursuit[F]) -> Step[F]:
    """Nothing runs: start, unless a pod is left over or the next try is due later."""
    context, work = pursuit.context, pursuit.work
    alive = [
        pod.name for pod in context.seen.pods if not pod.ended and work.stage in (pod.stage, PURGE)
    ]
    if alive:
        return _stop(pursuit, [], "Replacing", f"waits until pod {alive[0]} has ended")
    if not _is_due(pursuit):
        return _wait(pursuit)
    manifests = (
        children.config_map(work),
        children.job(work, pursuit.series, context.terms.runtime, context.place, context.settings),
    )
    return pursuit.step(Kind.WORKING, _DOING[work.stage], _DOES[work.stage], apply=manifests)


def _again(pursuit: _Pursuit[F], job: Job) -> Step[F]:
    """A finished Job that did not reach the target holds the name: make room for the next try."""
    if not _is_spent(pursuit, job):
        return _stop(pursuit, [job], "Replacing", "asked anew; a new worker will start")
    if not _is_due(pursuit):
        # Until the status tells of the failure, the Job is its only witness. A failure that was
        # counted just now is never due before that: the shortest back-off is a second.
        return _wait(pursuit)
    return replace(_wait(pursuit), delete=(job.ref,), requeue_after_s=None)


def _is_due(pursuit: _Pursuit[F]) -> bool:
    due = pursuit.facts.next_retry_at
    return due is None or due <= pursuit.context.now


def _wait(pursuit: _Pursuit[F]) -> Step[F]:
    known, context = pursuit.facts, pursuit.context
    last, due = known.last_failure, known.next_retry_at
    left_s = (due - context.now).total_seconds() if due else 0.0
    at = f" at {due:%H:%M:%S}Z" if due else ""
    limit = context.terms.retry.limit
    message = last.message[:850] if last else "the last try did not succeed"
    return pursuit.step(
        Kind.RETRYING,
        last.reason if last else "Retrying",
        f"{message} (retry {max(known.retries, 1)} of {limit}{at})",
        requeue_after_s=max(left_s, 1.0),
    )


def _watch(pursuit: _Pursuit[F], job: Job) -> Step[F]:
    """An unfinished Job: leave it alone when it is the right one."""
    context, work = pursuit.context, pursuit.work
    if job.work != work.digest:
        message = "the spec changed; the worker saves its state and a new one starts"
        return _stop(pursuit, [job], "Replacing", message)
    config = children.config_map(work)
    lost = (
        job.config_map == config["metadata"]["name"]
        and job.config_map not in context.seen.config_maps
    )
    alive = [pod for pod in job.pods if not pod.ended]
    runs = any(pod.phase == "Running" for pod in alive)
    holdup = holdups.of(
        job, alive, work=work, place=context.place, queue=context.terms.runtime.queue_name
    )
    quota = _quota(job, work, holdup)
    more: dict[str, Any] = {"apply": (config,) if lost else (), "listens": runs, "quota": quota}
    if holdup is not None:
        return pursuit.step(Kind.HELD_UP, holdup.reason, holdup.message, **more)
    return pursuit.step(Kind.WORKING, _DOING[work.stage], _DOES[work.stage], **more)


def _quota(job: Job, work: Work, holdup: readings.Problem | None) -> Quota:
    if work.stage != TRAIN:
        return NOT_YET
    if any(pod.scheduled for pod in job.pods if not pod.ended):
        return HELD
    if holdup is not None:
        return Quota(False, holdup.reason, holdup.message)
    return Quota(False, "Pending", "the train pod is not on a node yet")
