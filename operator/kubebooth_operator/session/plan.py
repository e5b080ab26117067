"""One session, observed → what should be: the order of stages and nothing of how they look.

Pure: neither clock nor network, and never a look at the phase. What only status remembers is read
through `facts`, guarded by digests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from kubebooth_api.door import explain
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec, DreamboothSessionStatus
from pydantic import ValidationError

from kubebooth_operator.doors import Observed, Plan, Stalled, Waiting
from kubebooth_operator.jobs import facts as tries
from kubebooth_operator.jobs import pausing, readings, steps
from kubebooth_operator.jobs.deletion import finalizer
from kubebooth_operator.jobs.readings import Seen
from kubebooth_operator.jobs.situation import RELEASED, Kind, Situation
from kubebooth_operator.jobs.sources import Asker, Wanted
from kubebooth_operator.jobs.steps import Context, Step, Terms, look_again
from kubebooth_operator.jobs.work import FETCH, SESSION, TRAIN, Place, Work, resolve_place
from kubebooth_operator.session import (
    asked,
    base_model,
    deletion,
    exporting,
    exports,
    facts,
    status,
)
from kubebooth_operator.session.exports import Export
from kubebooth_operator.session.facts import Facts
from kubebooth_operator.session.served import refuse
from kubebooth_operator.settings import Settings

Session = Seen[DreamboothSessionStatus]


@dataclass(frozen=True)
class _Terms:
    """Everything that is known before looking at what happened."""

    context: Context[DreamboothSessionStatus]
    spec: DreamboothSessionSpec
    wanted: Wanted
    exports: tuple[Export, ...]

    @property
    def place(self) -> Place:
        return self.context.place

    @property
    def identity(self) -> SessionIdentity:
        seen = self.context.seen
        return SessionIdentity(namespace=seen.namespace, name=seen.name, uid=seen.uid)


@dataclass(frozen=True)
class _Course:
    """Where the session stands on its way."""

    facts: Facts
    work: Work | None
    """What a worker must do next; None when nothing is left for workers."""
    prepared: bool
    trained: bool
    waiting: Waiting | None = None
    """Why nothing can be asked yet."""


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What should be done about a DreamboothSession now. Raises nothing of its own."""
    now = now.replace(microsecond=0)
    session = readings.read(observed, DreamboothSessionStatus)
    if session.disabled:
        return pausing.plan(session, now, order=status.CONDITIONS)
    owned = exports.read(observed.children)
    if session.deleting:
        return deletion.plan(session, owned, now, settings)
    try:
        spec = DreamboothSessionSpec.parse(session.spec)
    except ValidationError as error:
        return _stalled(session, None, Stalled("InvalidSpec", explain(error)), now)
    try:
        refuse(spec)
        place = resolve_place(spec.storage, settings)
        wanted = base_model.wanted(spec, settings)
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
    how = Terms(suspend=spec.suspend, retry=spec.retry, runtime=spec.runtime)
    context = Context(session, how, place, settings, now)
    try:
        return _pursue(_Terms(context, spec, wanted, owned), observed)
    except Stalled as stalled:
        return _stalled(session, spec, stalled, now)


def _pursue(terms: _Terms, observed: Observed) -> Plan:
    context = terms.context
    session = context.seen
    course = _course(terms, observed)
    step = _step(terms, course)
    known = step.facts
    if step.listens and course.work is not None:
        known = facts.with_worker(known, observed.worker, course.work.stage)
    known = tries.with_attempts(known, session.pods)
    written = status.write(
        known,
        step.situation,
        stages=status.stages(
            known,
            step.situation,
            prepared=course.prepared,
            trained=course.trained,
            captions=terms.spec.captions.mode,
        ),
        generation=session.generation,
        now=context.now,
    )
    delete = (*step.delete, *steps.unused_config_maps(session, step))
    return Plan(
        apply=step.apply,
        delete=delete,
        status=written,
        finalizer=finalizer(session, terms.spec.deletion_policy),
        events=status.events(session.status, written, step.situation),
        poll_progress=step.listens,
        requeue_after_s=look_again(step.apply, delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )


def _course(terms: _Terms, observed: Observed) -> _Course:
    """Walk the stages in order; the first that is not done is the work."""
    context, spec = terms.context, terms.spec
    session, settings = context.seen, context.settings
    asker = Asker(SESSION, terms.identity, terms.place, settings, spec.runtime, spec.storage)
    known = _with_answer_of_fetch(terms, session.status, asker)
    try:
        base = base_model.resolve(terms.wanted, known, observed.sessions, asker)
    except Waiting as waiting:
        return _Course(known, None, prepared=False, trained=False, waiting=waiting)
    known = base.facts
    if base.fetch is not None:
        known = tries.with_work(known, steps.series_of(session, base.fetch), now=context.now)
        return _Course(known, base.fetch, prepared=False, trained=False)
    prepare = asked.prepare(spec, terms.identity, terms.place, fetched=base.artifact)
    if not facts.is_prepared(known, prepare):
        known = facts.with_prepared(known, prepare, steps.answer(session, prepare))
    dataset, model = known.dataset, known.base_model
    if dataset is None or model is None or not facts.is_prepared(known, prepare):
        known = tries.with_work(known, steps.series_of(session, prepare), now=context.now)
        return _Course(known, prepare, prepared=False, trained=False)
    train = asked.train(
        spec,
        terms.identity,
        terms.place,
        dataset=dataset,
        base_model=model,
        class_images=known.class_images,
        concept_images=known.concept_images,
    )
    return _train(terms, known, train)


def _with_answer_of_fetch(terms: _Terms, known: Facts, asker: Asker) -> Facts:
    """A Fetch that has ended may have told where the base model is."""
    fetch = base_model.fetch(terms.wanted, asker)
    if fetch is None or tries.fetched(known, fetch.target) is not None:
        return known
    report = steps.answer(terms.context.seen, fetch)
    return tries.with_fetched(known, fetch.target, report.base_model if report else None)


def _train(terms: _Terms, known: Facts, train: Work) -> _Course:
    session, now = terms.context.seen, terms.context.now
    known = facts.with_run(known, train)
    job = session.jobs.get(TRAIN)
    pods = job.pods if job is not None and job.target == train.target else ()
    newest = next((pod.report for pod in reversed(pods) if pod.report), None)
    known = facts.with_profile(known, newest, resolution=asked.resolution_of(terms.spec))
    if not facts.is_trained(known, train):
        names = frozenset(output.name for output in asked.exported(terms.spec))
        answer = steps.answer(session, train)
        known = facts.with_trained(known, train, answer, exports=names)
    if facts.is_trained(known, train):
        return _Course(known, None, prepared=True, trained=True)
    known = tries.with_work(known, steps.series_of(session, train), now=now)
    return _Course(known, train, prepared=True, trained=False)


def _step(terms: _Terms, course: _Course) -> Step[DreamboothSessionStatus]:
    context, ttl_s = terms.context, terms.spec.ttl_seconds_after_finished
    if course.waiting is not None:
        return steps.hold(context, course.facts, course.waiting, stage=FETCH)
    if course.work is not None:
        step = exporting.pause(terms.exports, asked.exported(terms.spec), _work(terms, course))
        if step.situation.kind is not Kind.FAILED:
            return step
        recorded = context.seen.status.last_failure
        failed_at = recorded.at if recorded == step.facts.last_failure and recorded else None
        return steps.tidy(context, step, failed_at, ttl_s=ttl_s)
    running = [job for job in context.seen.jobs.values() if not job.finished]
    stop = steps.stop_all(running)
    exported = exporting.pursue(context, terms.spec, terms.exports, course.facts)
    if exported.situation is not None:
        return Step(
            exported.situation,
            exported.facts,
            apply=exported.apply,
            delete=(*stop, *exported.delete),
        )
    known = exported.facts
    # A spec that went back to what was reached is complete again, from now on.
    if known.completed_at is None:
        known = known.model_copy(update={"completed_at": context.now})
    names = ", ".join(artifact.name for artifact in known.artifacts)
    situation = Situation(Kind.COMPLETE, "Complete", f"published: {names}", quota=RELEASED)
    step = Step(situation, known, apply=exported.apply, delete=(*stop, *exported.delete))
    return steps.tidy(context, step, context.seen.status.completed_at, ttl_s=ttl_s)


def _work(terms: _Terms, course: _Course) -> Step[DreamboothSessionStatus]:
    """The next step of a worker's task."""
    if course.work is None:
        raise TypeError("nothing is left for workers")
    step = steps.pursue(terms.context, course.facts, course.work)
    checkpoint, situation = step.facts.checkpoint, step.situation
    if situation.kind is Kind.SUSPENDED and course.work.stage == TRAIN and checkpoint is not None:
        told = f"{situation.message} from {checkpoint.stage} step {checkpoint.step}"
        return replace(step, situation=replace(situation, message=told))
    return step


def _stalled(
    session: Session, spec: DreamboothSessionSpec | None, stalled: Stalled, now: datetime
) -> Plan:
    """Tell what is wrong and touch nothing: what runs was asked for by an earlier, valid spec."""
    situation = steps.stalled(session, stalled)
    known = tries.with_attempts(session.status, session.pods)
    written = status.write(
        known,
        situation,
        stages=status.stages_as_before(known, situation),
        generation=session.generation,
        now=now,
    )
    return Plan(
        status=written,
        finalizer=None if spec is None else finalizer(session, spec.deletion_policy),
        events=status.events(session.status, written, situation),
        decision=f"{situation.reason}: {situation.message}",
    )
