"""A session that a person took out of our hands → one condition that says so. Pure."""

from __future__ import annotations

from datetime import datetime

from kubebooth_operator.doors import Plan
from kubebooth_operator.session import status
from kubebooth_operator.session.names import RECONCILE_ANNOTATION
from kubebooth_operator.session.readings import Session

_MESSAGE = (
    f"left alone: annotation {RECONCILE_ANNOTATION} is disabled; remove it to go on. Workers that"
    " run go on, and a deletion that wants a purge waits"
)


def plan(session: Session, now: datetime) -> Plan:
    """Touch nothing. Conditions that nobody looks after keep the generation they speak of."""
    known = session.status
    old = {condition.type: condition for condition in known.conditions}
    old["Reconciling"] = status.condition(
        old.get("Reconciling"),
        "Reconciling",
        (False, "ReconcileDisabled", _MESSAGE),
        generation=session.generation,
        now=now,
    )
    ordered = tuple(old[kind] for kind in status.CONDITIONS if kind in old)
    told = known.model_copy(update={"conditions": ordered, "phase": "Paused", "message": _MESSAGE})
    return Plan(status=told.dump(), decision=f"ReconcileDisabled: {_MESSAGE}")
