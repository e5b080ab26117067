"""One conversion, observed → what should be. Pure: neither clock nor network.

What only status remembers is read through `facts`, guarded by digests; phase is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kubebooth_api.artifacts import Artifact
from kubebooth_api.door import explain
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec, ModelConversionStatus
from pydantic import ValidationError

from kubebooth_operator.conversion import asked, facts, served, status
from kubebooth_operator.conversion.facts import Facts
from kubebooth_operator.doors import Observed, Plan, Stalled, Waiting
from kubebooth_operator.jobs import deletion, pausing, readings, sources, steps
from kubebooth_operator.jobs import facts as tries
from kubebooth_operator.jobs.readings import Seen
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.sources import Asker, Wanted
from kubebooth_operator.jobs.steps import Context, Step, Terms, look_again
from kubebooth_operator.jobs.work import CONVERSION, FETCH, Work, resolve_place
from kubebooth_operator.settings import Settings

Conversion = Seen[ModelConversionStatus]


@dataclass(frozen=True)
class _Course:
    """Where the conversion stands on its way."""

    facts: Facts
    work: Work | None
    """What a worker must do next; None when it is done or nothing can be asked yet."""
    found: bool
    """Whether all models stand in the store."""
    waiting: Waiting | None = None


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What should be done about a ModelConversion now. Raises nothing of its own."""
    now = now.replace(microsecond=0)
    seen = readings.read(observed, ModelConversionStatus)
    if seen.disabled:
        return pausing.plan(seen, now, order=status.CONDITIONS)
    if seen.deleting:
        return _delete(seen, now, settings)
    try:
        spec = ModelConversionSpec.parse(seen.spec)
    except ValidationError as error:
        return _stalled(seen, None, Stalled("InvalidSpec", explain(error)), now)
    try:
        served.refuse(spec)
        context = _context(seen, spec, settings, now)
    except Stalled as stalled:
        return _stalled(seen, spec, stalled, now)
    if spec.deletion_policy == "Delete" and not seen.has_finalizer:
        # Nothing may be written to the store before deletion is sure to wait for us.
        return Plan(
            finalizer=True,
            requeue_after_s=steps.AT_ONCE_S,
            decision="FinalizerAdded: deletion will wait for a purge",
        )
    try:
        course = _course(context, spec, observed)
    except Stalled as stalled:
        return _stalled(seen, spec, stalled, now)
    return _tell(context, spec, observed, course, _step(context, spec, course))


def _context(
    seen: Conversion, spec: ModelConversionSpec, settings: Settings, now: datetime
) -> Context[ModelConversionStatus]:
    """Raises `Stalled` when no store is configured."""
    place = resolve_place(spec.storage, settings)
    terms = Terms(suspend=spec.suspend, retry=spec.retry, runtime=asked.runtime(spec))
    return Context(seen, terms, place, settings, now)


def _identity(seen: Conversion) -> SessionIdentity:
    return SessionIdentity(namespace=seen.namespace, name=seen.name, uid=seen.uid)


def _course(
    context: Context[ModelConversionStatus], spec: ModelConversionSpec, observed: Observed
) -> _Course:
    """Find the models in their order, then convert. Raises `Stalled`."""
    seen, place = context.seen, context.place
    asker = Asker(CONVERSION, _identity(seen), place, context.settings, spec.runtime, spec.storage)
    wanted = asked.wanted(spec)
    known = tries.only_fetched(seen.status, [model.key(place) for model in wanted])
    found: list[Artifact] = []
    for model in wanted:
        try:
            known, artifact = _find(context, spec, model, known, observed, asker)
        except Waiting as waiting:
            return _Course(known, None, found=False, waiting=waiting)
        if artifact is None:
            fetch = sources.fetch(model, asker)
            known = tries.with_work(known, steps.series_of(seen, fetch), now=context.now)
            return _Course(known, fetch, found=False)
        sources.refuse_other_digest(model.source, artifact, path=model.path)
        found.append(artifact)
    work = asked.convert(spec, _identity(seen), place, asked.models(spec, tuple(found)))
    known = facts.with_source(known, work)
    if not facts.is_converted(known, work):
        known = facts.with_converted(known, work, steps.answer(seen, work))
    if facts.is_converted(known, work):
        # A spec that went back to what was reached is complete again, from now on.
        done = {} if known.completed_at else {"completed_at": context.now}
        return _Course(known.model_copy(update=done), None, found=True)
    _refuse_to_overwrite(spec, known, seen.name)
    known = tries.with_work(known, steps.series_of(seen, work), now=context.now)
    return _Course(known, work, found=True)


def _find(
    context: Context[ModelConversionStatus],
    spec: ModelConversionSpec,
    model: Wanted,
    known: Facts,
    observed: Observed,
    asker: Asker,
) -> tuple[Facts, Artifact | None]:
    """Where a model stands; None where a worker must fetch it. Raises `Waiting` and `Stalled`."""
    source, key = model.source, model.key(context.place)
    if source.store is not None:
        return known, sources.in_store(source, context.place, path=model.path)
    taken = tries.fetched(known, key)
    if source.session is None:
        if taken is None:
            report = steps.answer(context.seen, sources.fetch(model, asker))
            taken = report.base_model if report is not None else None
            if model.path == "spec.source":
                known = facts.with_detected(known, report)
        return tries.with_fetched(known, key, taken), taken
    if taken is not None and known.artifact is not None and not spec.overwrite:
        # What was published from this model may not be replaced: a newer one is not asked for.
        return known, taken
    try:
        newest = sources.of_session(source, observed.sessions, context.place, path=model.path)
    except Waiting:
        if taken is None:
            raise
        return known, taken
    return tries.with_fetched(known, key, newest), newest


def _refuse_to_overwrite(spec: ModelConversionSpec, known: Facts, name: str) -> None:
    artifact = known.artifact
    if artifact is None or spec.overwrite or spec.dry_run:
        return
    if artifact.name == asked.artifact_name(spec, name):
        raise Stalled(
            "WouldOverwrite",
            f"spec.overwrite: artifact {artifact.name} was made from other inputs or with other"
            " options; set overwrite: true to replace it, or give spec.target.name another name",
        )


def _step(
    context: Context[ModelConversionStatus], spec: ModelConversionSpec, course: _Course
) -> Step[ModelConversionStatus]:
    ttl_s = spec.ttl_seconds_after_finished
    if course.waiting is not None:
        return steps.hold(context, course.facts, course.waiting, stage=FETCH)
    if course.work is not None:
        step = steps.pursue(context, course.facts, course.work)
        if step.situation.kind is not Kind.FAILED:
            return step
        recorded = context.seen.status.last_failure
        failed_at = recorded.at if recorded == step.facts.last_failure and recorded else None
        return steps.tidy(context, step, failed_at, ttl_s=ttl_s)
    situation = Situation(Kind.COMPLETE, "Complete", _told(course.facts, spec))
    running = [job for job in context.seen.jobs.values() if not job.finished]
    step = Step(situation, course.facts, delete=steps.stop_all(running))
    return steps.tidy(context, step, context.seen.status.completed_at, ttl_s=ttl_s)


def _told(known: Facts, spec: ModelConversionSpec) -> str:
    counts = known.counts
    tensors = f": {counts.tensors} tensors, {counts.dropped} left out" if counts else ""
    if spec.dry_run:
        return f"planned{tensors}; dryRun writes nothing"
    name = known.artifact.name if known.artifact else spec.target.format
    return f"published {name}{tensors}"


def _tell(
    context: Context[ModelConversionStatus],
    spec: ModelConversionSpec,
    observed: Observed,
    course: _Course,
    step: Step[ModelConversionStatus],
) -> Plan:
    seen, known = context.seen, step.facts
    if step.listens and course.work is not None:
        known = tries.with_progress(known, observed.worker, course.work.stage)
    known = tries.with_attempts(known, seen.pods)
    written = status.write(
        known,
        step.situation,
        source=status.source_ready(known, step.situation, found=course.found),
        generation=seen.generation,
        now=context.now,
    )
    delete = (*step.delete, *steps.unused_config_maps(seen, step))
    return Plan(
        apply=step.apply,
        delete=delete,
        status=written,
        finalizer=deletion.finalizer(seen, spec.deletion_policy),
        events=status.events(seen.status, written, step.situation),
        poll_progress=step.listens,
        requeue_after_s=look_again(step.apply, delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )


def _delete(seen: Conversion, now: datetime, settings: Settings) -> Plan:
    gone = deletion.let_go(seen)
    if gone is not None:
        return gone
    try:
        spec = ModelConversionSpec.parse(seen.spec)
        context = _context(seen, spec, settings, now)
    except ValidationError as error:
        return _said(seen, deletion.blocked("InvalidSpec", explain(error), seen), now)
    except Stalled as stalled:
        return _said(seen, deletion.blocked(stalled.reason, stalled.message, seen), now)
    work = asked.purge(spec, _identity(seen), context.place)
    goodbye = deletion.purge(context, work)
    return goodbye if isinstance(goodbye, Plan) else _said(seen, goodbye, now)


def _stalled(
    seen: Conversion, spec: ModelConversionSpec | None, stalled: Stalled, now: datetime
) -> Plan:
    """Tell what is wrong and touch nothing: what runs was asked for by an earlier, valid spec."""
    step = Step(steps.stalled(seen, stalled), seen.status)
    gone = None if spec is None else deletion.finalizer(seen, spec.deletion_policy)
    return _said(seen, step, now, finalizer=gone)


def _said(
    seen: Conversion,
    step: Step[ModelConversionStatus],
    now: datetime,
    *,
    finalizer: bool | None = None,
) -> Plan:
    """A plan without a course: what is converted cannot be told, or is no matter any more."""
    known = tries.with_attempts(step.facts, seen.pods)
    written = status.write(
        known,
        step.situation,
        source=status.source_ready(known, step.situation, found=False),
        generation=seen.generation,
        now=now,
    )
    return Plan(
        apply=step.apply,
        delete=step.delete,
        status=written,
        finalizer=finalizer,
        events=status.events(seen.status, written, step.situation),
        requeue_after_s=look_again(step.apply, step.delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )
