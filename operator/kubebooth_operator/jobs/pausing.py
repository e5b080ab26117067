"""An object that a person took out of our hands → one condition that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kubebooth_operator.doors import Plan
from kubebooth_operator.jobs import telling
from kubebooth_operator.jobs.names import RECONCILE_ANNOTATION
from kubebooth_operator.jobs.readings import F, Seen

_MESSAGE = (
    f"left alone: annotation {RECONCILE_ANNOTATION} is disabled; remove it to go on. Workers that"
    " run go on, and a deletion that wants a purge waits"
)


def plan(seen: Seen[F], now: datetime, *, order: Iterable[str]) -> Plan:
    """Touch nothing. Conditions that nobody looks after keep the generation they speak of."""
    known = seen.status
    old = {condition.type: condition for condition in known.conditions}
    old["Reconciling"] = telling.condition(
        old.get("Reconciling"),
        "Reconciling",
        (False, "ReconcileDisabled", _MESSAGE),
        generation=seen.generation,
        now=now,
    )
    ordered = tuple(old[kind] for kind in order if kind in old)
    told = known.model_copy(update={"conditions": ordered, "phase": "Paused", "message": _MESSAGE})
    return Plan(status=told.dump(), decision=f"ReconcileDisabled: {_MESSAGE}")
