"""A session that is being deleted and wants its data gone → stop, purge, let go. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from kubebooth_api.door import explain
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from pydantic import ValidationError

from kubebooth_operator.doors import Plan, Stalled
from kubebooth_operator.session import asked, facts, status, steps
from kubebooth_operator.session.asked import PURGE
from kubebooth_operator.session.readings import Session
from kubebooth_operator.session.situation import Kind, Situation
from kubebooth_operator.session.steps import Context, Step, look_again
from kubebooth_operator.settings import Settings

_CASCADES = {"foregroundDeletion", "orphan"}
"""Finalizers of Kubernetes itself: while one is there, it deletes or disowns every child."""
_LET_GO = "set spec.deletionPolicy to Retain to let the object go and keep its data"


def plan(session: Session, now: datetime, settings: Settings) -> Plan:
    """What should be done about a session with a deletion timestamp."""
    if not session.has_finalizer:
        return Plan(decision="Deleting: Kubernetes deletes what the session owned")
    if session.spec.get("deletionPolicy") != "Delete":
        return Plan(finalizer=False, decision="Retained: the data stays and the object may go")
    try:
        spec = DreamboothSessionSpec.parse(session.spec)
        place = asked.resolve_place(spec, settings)
    except ValidationError as error:
        return _tell(session, _blocked("InvalidSpec", explain(error), session), now)
    except Stalled as stalled:
        return _tell(session, _blocked(stalled.reason, stalled.message, session), now)
    context = Context(session, spec, place, settings, now)
    identity = SessionIdentity(namespace=session.namespace, name=session.name, uid=session.uid)
    work = asked.purge(spec, identity, place)
    job = session.jobs.get(PURGE)
    if job is not None and job.result == "Complete" and job.target == work.target:
        return Plan(finalizer=False, decision="Purged: the data is deleted and the object may go")
    known = facts.with_work(session.status, steps.series_of(session, work), now=now)
    step = steps.pursue(context, known, work)
    if step.apply and _CASCADES.intersection(session.finalizers):
        message = "Kubernetes deletes the session's children; the purge follows"
        step = Step(Situation(Kind.STOPPING, "Purging", message, stage=PURGE), known)
    if step.situation.kind is Kind.FAILED:
        told = f"{step.situation.message}; or {_LET_GO}"
        step = replace(step, situation=replace(step.situation, message=told))
    return _tell(session, step, now)


def _blocked(reason: str, message: str, session: Session) -> Step:
    situation = Situation(Kind.STALLED, reason, f"{message[:800]}; or {_LET_GO}", stage=PURGE)
    return Step(situation, session.status)


def _tell(session: Session, step: Step, now: datetime) -> Plan:
    known = facts.with_attempts(step.facts, session.pods)
    written = status.write(
        known,
        step.situation,
        stages=status.stages_as_before(known, step.situation),
        generation=session.generation,
        now=now,
    )
    return Plan(
        apply=step.apply,
        delete=step.delete,
        status=written,
        events=status.events(session.status, written, step.situation),
        requeue_after_s=look_again(step.apply, step.delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )
