"""Honest stand-ins for the kinds that this version accepts but does not serve yet. Pure.

A wrong spec is told first; a right one is told that nothing will happen, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubebooth_api.door import Door, explain
from kubebooth_api.v1alpha1.webui import WebUIInstanceSpec
from pydantic import ValidationError

from kubebooth_operator.doors import Event, Observed, Plan
from kubebooth_operator.settings import Settings

_SPECS: Mapping[str, type[Door]] = {
    "WebUIInstance": WebUIInstanceSpec,
}
_INSTEAD: Mapping[str, str] = {
    "WebUIInstance": "fetch a session's model with `kubebooth fetch` and load it in your own UI",
}


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """`Stalled` with the faults of the spec, or with what this version lacks. Never a child."""
    parent = observed.parent
    kind = parent["kind"]
    try:
        _SPECS[kind].parse(parent.get("spec") or {})
    except ValidationError as error:
        return _stalled(parent, now, "InvalidSpec", explain(error)[:1000])
    message = f"{kind} is accepted but not served by this version; {_INSTEAD[kind]}"
    return _stalled(parent, now, "NotSupported", message)


def _stalled(parent: Mapping[str, Any], now: datetime, reason: str, message: str) -> Plan:
    generation = int(parent["metadata"].get("generation") or 0)
    old = {c["type"]: c for c in (parent.get("status") or {}).get("conditions") or ()}
    at = now.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    conditions = []
    for type_, value in (("Ready", "False"), ("Reconciling", "False"), ("Stalled", "True")):
        known = old.get(type_) or {}
        since = known["lastTransitionTime"] if known.get("status") == value else at
        conditions.append(
            {
                "type": type_,
                "status": value,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": reason,
                "message": message,
            }
        )
    changed = (old.get("Stalled") or {}).get("reason") != reason
    return Plan(
        status={
            "observedGeneration": generation,
            "phase": "Stalled",
            "message": message,
            "conditions": conditions,
        },
        events=(Event("Warning", reason, message),) if changed else (),
        decision=f"{reason}: {message}",
    )
