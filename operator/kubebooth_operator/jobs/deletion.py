"""An object that is being deleted and wants its data gone → stop, purge, let go. Pure."""

from __future__ import annotations

from dataclasses import replace

from kubebooth_operator.doors import Plan
from kubebooth_operator.jobs import facts, steps
from kubebooth_operator.jobs.readings import F, Seen
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.steps import Context, Step
from kubebooth_operator.jobs.work import PURGE, Work

_CASCADES = {"foregroundDeletion", "orphan"}
"""Finalizers of Kubernetes itself: while one is there, it deletes or disowns every child."""
LET_GO = "set spec.deletionPolicy to Retain to let the object go and keep its data"


def let_go(seen: Seen[F]) -> Plan | None:
    """The plan for an object whose data stays; None when it must be purged first."""
    if not seen.has_finalizer:
        return Plan(decision="Deleting: Kubernetes deletes what the object owned")
    if seen.spec.get("deletionPolicy") != "Delete":
        return Plan(finalizer=False, decision="Retained: the data stays and the object may go")
    return None


def finalizer(seen: Seen[F], deletion_policy: str) -> bool | None:
    """False where our finalizer is to go, as nothing will be purged; None leaves it as it is."""
    return False if seen.has_finalizer and deletion_policy == "Retain" else None


def purge(context: Context[F], work: Work) -> Plan | Step[F]:
    """The next step of the purge, or the plan that lets the object go after it."""
    seen = context.seen
    job = seen.jobs.get(PURGE)
    if job is not None and job.result == "Complete" and job.target == work.target:
        done = "Purged: the data is deleted and the object may go"
        return Plan(finalizer=False, decision=done)
    known = facts.with_work(seen.status, steps.series_of(seen, work), now=context.now)
    step = steps.pursue(context, known, work)
    if step.apply and _CASCADES.intersection(seen.finalizers):
        message = "Kubernetes deletes the object's children; the purge follows"
        step = Step(Situation(Kind.STOPPING, "Purging", message, stage=PURGE), known)
    if step.situation.kind is Kind.FAILED:
        told = f"{step.situation.message}; or {LET_GO}"
        step = replace(step, situation=replace(step.situation, message=told))
    return step


def blocked(reason: str, message: str, seen: Seen[F]) -> Step[F]:
    """What keeps the purge from being asked, and how to let the object go all the same."""
    situation = Situation(Kind.STALLED, reason, f"{message[:800]}; or {LET_GO}", stage=PURGE)
    return Step(situation, seen.status)
