"""One piece of work and what is seen of its Job → the next step towards it. Pure.

Knows how Jobs are started, replaced, retried and stopped; not which stage comes after which. At
most one Job of a stage exists, and a new one is asked for only when the old one and its pods are
gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from kubebooth_api.digests import digest_json
from kubebooth_api.runs import RunReport
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec

from kubebooth_operator.doors import ChildRef
from kubebooth_operator.session import children, facts, failures, holdups, readings
from kubebooth_operator.session.asked import PREPARE, PURGE, TRAIN, Place, Work
from kubebooth_operator.session.facts import Facts
from kubebooth_operator.session.readings import Job, Session
from kubebooth_operator.session.situation import HELD, NOT_YET, Kind, Quota, Situation
from kubebooth_operator.settings import Settings

LAST_WORD_S = 30
"""How long the pod's last word may lag behind its Job's end."""
SOON_S = 5.0
AT_ONCE_S = 0.1
"""Look again as soon as our own writes are known: they send us no event."""

_DOES = {
    PREPARE: "the worker checks the pictures and the base model",
    TRAIN: "the worker trains the model",
    PURGE: "the worker deletes what the session left in the store",
}
_DOING = {PREPARE: "Preparing", TRAIN: "Training", PURGE: "Purging"}


@dataclass(frozen=True)
class Context:
    """What every step is decided with."""

    session: Session
    spec: DreamboothSessionSpec
    place: Place
    settings: Settings
    now: datetime


@dataclass(frozen=True)
class Step:
    """What to do now, and what is known after it."""

    situation: Situation
    facts: Facts
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[ChildRef, ...] = ()
    listens: bool = False
    """Whether a worker of this work runs and can be asked."""
    requeue_after_s: float | None = None


@dataclass(frozen=True)
class _Pursuit:
    """One work, its Job and the context, together."""

    context: Context
    work: Work
    facts: Facts
    job: Job | None
    series: str

    def step(self, kind: Kind, reason: str, message: str, **more: Any) -> Step:
        """A step in a situation of this work."""
        quota = more.pop("quota", NOT_YET)
        situation = Situation(kind, reason, message, stage=self.work.stage, quota=quota)
        return Step(situation, self.facts, **more)


def series_of(session: Session, work: Work) -> str:
    """Identity of a series of tries: other work is another, and so is a retry asked by a person."""
    return digest_json({"work": work.digest, "retry": session.retry_token})


def answer(session: Session, work: Work) -> RunReport | None:
    """The report of a completed Job that reached what the work aims at."""
    job = session.jobs.get(work.stage)
    if job is None or job.result != "Complete" or job.target != work.target:
        return None
    return job.report


def pursue(context: Context, known: Facts, work: Work) -> Step:
    """The next step towards the work. `known` must speak of this series of tries."""
    session = context.session
    job = session.jobs.get(work.stage)
    pursuit = _Pursuit(context, work, known, job, series_of(session, work))
    others = [j for j in session.jobs.values() if j.stage != work.stage and not j.finished]
    if others:
        return _stop(pursuit, others, "Replacing", "an earlier worker saves its state and stops")
    if job is not None and job.finished and not job.terminating and _is_spent(pursuit, job):
        counted = _count(pursuit, job)
        if counted is None:
            message = "the Job has ended; its worker's last word is awaited"
            return pursuit.step(Kind.WORKING, "Ending", message, requeue_after_s=SOON_S)
        pursuit = counted
    if facts.has_failed(pursuit.facts, pursuit.series, context.spec.retry) and (
        job is None or job.finished
    ):
        return _failed(pursuit)
    if context.spec.suspend and work.stage != PURGE:
        return _suspend(pursuit)
    if job is None:
        return _begin(pursuit)
    if job.terminating:
        return _stop(pursuit, [job], "Replacing", "an earlier worker saves its state and stops")
    if not job.finished:
        return _watch(pursuit, job)
    return _again(pursuit, job)


def look_again(
    apply: Sequence[object], delete: Sequence[object], *, after_s: float | None
) -> float | None:
    """When to look again: at once after children were touched. A child may turn out to be there
    or gone already, and then nobody else would tell us."""
    return AT_ONCE_S if apply or delete else after_s


def stop_all(jobs: Iterable[Job]) -> tuple[ChildRef, ...]:
    """References to delete the Jobs that are not being deleted already."""
    return tuple(job.ref for job in jobs if not job.terminating)


def _is_spent(pursuit: _Pursuit, job: Job) -> bool:
    """Whether a finished Job was a try of this series; one that reached the target and told so is
    never asked about here."""
    if job.result == "Complete":
        return job.target == pursuit.work.target
    return job.series == pursuit.series


def _count(pursuit: _Pursuit, job: Job) -> _Pursuit | None:
    """Count the Job's failure; None while its pod has not told yet."""
    if pursuit.facts.counted_job == job.uid:
        return pursuit
    now = pursuit.context.now
    failure = failures.of(job) if job.result == "Failed" else None
    if failure is None:
        if job.finished_at and now - job.finished_at < timedelta(seconds=LAST_WORD_S):
            return None
        failure = failures.silent(job)
    retry = pursuit.context.spec.retry
    return replace(pursuit, facts=facts.with_failure(pursuit.facts, job, failure, retry, now=now))


def _failed(pursuit: _Pursuit) -> Step:
    last, retries = pursuit.facts.last_failure, pursuit.facts.retries
    reason = last.reason if last else "Failed"
    message = last.message if last else f"{pursuit.work.stage} failed"
    tries = f"after {retries} failed tries; " if retries > 1 else ""
    name = pursuit.context.session.name
    hint = f" ({tries}change the spec, or mend the cause and run `kubectl kubebooth retry {name}`)"
    return pursuit.step(Kind.FAILED, reason, f"{message[:800]}{hint}")


def _suspend(pursuit: _Pursuit) -> Step:
    session = pursuit.context.session
    running = [job for job in session.jobs.values() if not job.finished]
    alive = [pod.name for pod in session.pods if not pod.ended]
    if running or alive:
        return _stop(pursuit, running, "Suspending", "the worker saves its state and stops")
    message = "suspended; set spec.suspend to false to go on"
    checkpoint = pursuit.facts.checkpoint
    if checkpoint is not None and pursuit.work.stage == TRAIN:
        message = f"{message} from {checkpoint.stage} step {checkpoint.step}"
    return pursuit.step(Kind.SUSPENDED, "Suspended", message)


def _stop(pursuit: _Pursuit, jobs: Iterable[Job], reason: str, message: str) -> Step:
    return pursuit.step(Kind.STOPPING, reason, message, delete=stop_all(jobs))


def _begin(pursuit: _Pursuit) -> Step:
    """Nothing runs: start, unless a pod is left over or the next try is due later."""
    context, work = pursuit.context, pursuit.work
    alive = [
        pod.name
        for pod in context.session.pods
        if not pod.ended and work.stage in (pod.stage, PURGE)
    ]
    if alive:
        return _stop(pursuit, [], "Replacing", f"waits until pod {alive[0]} has ended")
    if not _is_due(pursuit):
        return _wait(pursuit)
    manifests = (
        children.config_map(work),
        children.job(work, pursuit.series, context.spec.runtime, context.place, context.settings),
    )
    return pursuit.step(Kind.WORKING, _DOING[work.stage], _DOES[work.stage], apply=manifests)


def _again(pursuit: _Pursuit, job: Job) -> Step:
    """A finished Job that did not reach the target holds the name: make room for the next try."""
    if not _is_spent(pursuit, job):
        return _stop(pursuit, [job], "Replacing", "asked anew; a new worker will start")
    if not _is_due(pursuit):
        # Until the status tells of the failure, the Job is its only witness. A failure that was
        # counted just now is never due before that: the shortest back-off is a second.
        return _wait(pursuit)
    return replace(_wait(pursuit), delete=(job.ref,), requeue_after_s=None)


def _is_due(pursuit: _Pursuit) -> bool:
    due = pursuit.facts.next_retry_at
    return due is None or due <= pursuit.context.now


def _wait(pursuit: _Pursuit) -> Step:
    known, context = pursuit.facts, pursuit.context
    last, due = known.last_failure, known.next_retry_at
    left_s = (due - context.now).total_seconds() if due else 0.0
    at = f" at {due:%H:%M:%S}Z" if due else ""
    limit = context.spec.retry.limit
    message = last.message[:850] if last else "the last try did not succeed"
    return pursuit.step(
        Kind.RETRYING,
        last.reason if last else "Retrying",
        f"{message} (retry {max(known.retries, 1)} of {limit}{at})",
        requeue_after_s=max(left_s, 1.0),
    )


def _watch(pursuit: _Pursuit, job: Job) -> Step:
    """An unfinished Job: leave it alone when it is the right one."""
    context, work = pursuit.context, pursuit.work
    if job.work != work.digest:
        message = "the spec changed; the worker saves its state and a new one starts"
        return _stop(pursuit, [job], "Replacing", message)
    config = children.config_map(work)
    lost = (
        job.config_map == config["metadata"]["name"]
        and job.config_map not in context.session.config_maps
    )
    alive = [pod for pod in job.pods if not pod.ended]
    runs = any(pod.phase == "Running" for pod in alive)
    holdup = holdups.of(job, alive, context)
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
