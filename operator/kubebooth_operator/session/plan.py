"""One session, observed → what should be: the order of stages and nothing of how they look.

Pure: neither clock nor network, and never a look at the phase. What only status remembers is read
through `facts`, guarded by digests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kubebooth_api.door import explain
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from pydantic import ValidationError

from kubebooth_operator.doors import ChildRef, Observed, Plan, Stalled
from kubebooth_operator.session import asked, deletion, facts, pausing, readings, status, steps
from kubebooth_operator.session.asked import Work
from kubebooth_operator.session.facts import Facts
from kubebooth_operator.session.readings import Session
from kubebooth_operator.session.served import refuse_what_is_not_served
from kubebooth_operator.session.situation import RELEASED, Kind, Situation
from kubebooth_operator.session.steps import Context, Step, look_again
from kubebooth_operator.settings import Settings


@dataclass(frozen=True)
class _Course:
    """Where the session stands on its way."""

    facts: Facts
    work: Work | None
    """What a worker must do next; None when nothing is left to do."""
    prepared: bool
    trained: bool


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What should be done about a DreamboothSession now. Raises nothing of its own."""
    now = now.replace(microsecond=0)
    session = readings.read(observed)
    if session.disabled:
        return pausing.plan(session, now)
    if session.deleting:
        return deletion.plan(session, now, settings)
    try:
        spec = DreamboothSessionSpec.parse(session.spec)
    except ValidationError as error:
        return _stalled(session, None, Stalled("InvalidSpec", explain(error)), now)
    try:
        refuse_what_is_not_served(spec)
        place = asked.resolve_place(spec, settings)
    except Stalled as stalled:
        return _stalled(session, spec, stalled, now)
    if spec.deletion_policy == "Delete" and not session.has_finalizer:
        # Nothing may be written to the store before deletion is sure to wait for us.
        return Plan(
            finalizer=True,
            # Our own writes send us no event.
            requeue_after_s=steps.AT_ONCE_S,
            decision="FinalizerAdded: deletion will wait for a purge",
        )
    return _pursue(Context(session, spec, place, settings, now), observed)


def _pursue(context: Context, observed: Observed) -> Plan:
    session = context.session
    course = _course(context)
    step = _step(context, course)
    known = step.facts
    if step.listens and course.work is not None:
        known = facts.with_worker(known, observed.worker, course.work.stage)
    known = facts.with_attempts(known, session.pods)
    written = status.write(
        known,
        step.situation,
        stages=status.stages(
            known,
            step.situation,
            prepared=course.prepared,
            trained=course.trained,
            captions=context.spec.captions.mode,
        ),
        generation=session.generation,
        now=context.now,
    )
    delete = (*step.delete, *_unused_config_maps(session, step))
    return Plan(
        apply=step.apply,
        delete=delete,
        status=written,
        finalizer=_finalizer(session, context.spec),
        events=status.events(session.status, written, step.situation),
        poll_progress=step.listens,
        requeue_after_s=look_again(step.apply, delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )


def _course(context: Context) -> _Course:
    """Walk the stages in order; the first that is not done is the work."""
    session, spec, place = context.session, context.spec, context.place
    identity = SessionIdentity(namespace=session.namespace, name=session.name, uid=session.uid)
    known = session.status
    prepare = asked.prepare(spec, identity, place)
    if not facts.is_prepared(known, prepare):
        known = facts.with_prepared(known, prepare, steps.answer(session, prepare))
    dataset, base_model = known.dataset, known.base_model
    if dataset is None or base_model is None or not facts.is_prepared(known, prepare):
        series = steps.series_of(session, prepare)
        known = facts.with_work(known, series, now=context.now)
        return _Course(known, prepare, prepared=False, trained=False)
    train = asked.train(spec, identity, place, dataset=dataset, base_model=base_model)
    known = facts.with_run(known, train)
    if not facts.is_trained(known, train):
        known = facts.with_trained(known, train, steps.answer(session, train))
    if facts.is_trained(known, train):
        # A spec that went back to what was reached is complete again, from now on.
        done = {} if known.completed_at else {"completed_at": context.now}
        return _Course(known.model_copy(update=done), None, prepared=True, trained=True)
    known = facts.with_work(known, steps.series_of(session, train), now=context.now)
    return _Course(known, train, prepared=True, trained=False)


def _step(context: Context, course: _Course) -> Step:
    if course.work is not None:
        step = steps.pursue(context, course.facts, course.work)
        if step.situation.kind is not Kind.FAILED:
            return step
        recorded = context.session.status.last_failure
        failed_at = recorded.at if recorded == step.facts.last_failure and recorded else None
        return _tidy(context, step, failed_at)
    names = ", ".join(artifact.name for artifact in course.facts.artifacts)
    situation = Situation(Kind.COMPLETE, "Complete", f"published: {names}", quota=RELEASED)
    running = [job for job in context.session.jobs.values() if not job.finished]
    step = Step(situation, course.facts, delete=steps.stop_all(running))
    return _tidy(context, step, context.session.status.completed_at)


def _tidy(context: Context, step: Step, ended_at: datetime | None) -> Step:
    """Delete finished Jobs when their time is over. `ended_at` is None until the status tells of
    the end: before that the Jobs are its only witnesses."""
    ttl_s, jobs = context.spec.ttl_seconds_after_finished, context.session.jobs.values()
    if ttl_s is None or not jobs:
        return step
    if ended_at is None:
        return replace(step, requeue_after_s=steps.AT_ONCE_S)
    left_s = (ended_at + timedelta(seconds=ttl_s) - context.now).total_seconds()
    if left_s > 0:
        return replace(step, requeue_after_s=left_s)
    return replace(step, delete=steps.stop_all(jobs))


def _unused_config_maps(session: Session, step: Step) -> tuple[ChildRef, ...]:
    """Run ConfigMaps that no Job of now or of this step mounts."""
    used = {job.config_map for job in session.jobs.values()}
    used |= {manifest["metadata"]["name"] for manifest in step.apply}
    return tuple(ref for name, ref in session.config_maps.items() if name not in used)


def _finalizer(session: Session, spec: DreamboothSessionSpec) -> bool | None:
    if session.has_finalizer and spec.deletion_policy == "Retain":
        return False
    return None


def _stalled(
    session: Session, spec: DreamboothSessionSpec | None, stalled: Stalled, now: datetime
) -> Plan:
    """Tell what is wrong and touch nothing: what runs was asked for by an earlier, valid spec."""
    message = stalled.message
    if any(not job.finished for job in session.jobs.values()):
        message = f"{message[:900]} (the running worker is left alone and follows the earlier spec)"
    situation = Situation(Kind.STALLED, stalled.reason, message)
    known = facts.with_attempts(session.status, session.pods)
    written = status.write(
        known,
        situation,
        stages=status.stages_as_before(known, situation),
        generation=session.generation,
        now=now,
    )
    return Plan(
        status=written,
        finalizer=None if spec is None else _finalizer(session, spec),
        events=status.events(session.status, written, situation),
        decision=f"{situation.reason}: {situation.message}",
    )
