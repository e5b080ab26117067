"""Conditions for what only shows when a plan is carried out; pure, knows no kind."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubebooth_operator.doors import Manifest

_MOST_MESSAGE = 1024


def stalled_status(
    status: Manifest | None, parent: Manifest, *, reason: str, message: str, now: datetime
) -> dict[str, Any]:
    """`status` with the conditions of an object that cannot go on: Ready and Reconciling are
    False, Stalled is True, each with the reason and the message. Transition times are kept from
    the parent's own conditions where nothing changed."""
    there = parent.get("status") or {}
    base = dict(status if status is not None else there)
    old = {c["type"]: c for c in there.get("conditions") or () if "type" in c}
    told = {"Ready": "False", "Reconciling": "False", "Stalled": "True"}
    generation = parent["metadata"].get("generation", 0)
    shared = {
        "observedGeneration": generation,
        "reason": reason,
        "message": message[:_MOST_MESSAGE],
    }
    ours = {
        type_: {"type": type_, "status": value, **shared} | _since(value, old.get(type_), now)
        for type_, value in told.items()
    }
    kept = [ours.pop(c["type"], c) for c in base.get("conditions") or ()]
    base["conditions"] = [*kept, *ours.values()]
    base["observedGeneration"] = generation
    base["phase"] = "Stalled"
    base["message"] = message[:_MOST_MESSAGE]
    return base


def _since(value: str, old: Mapping[str, Any] | None, now: datetime) -> dict[str, str]:
    if old is not None and old.get("status") == value and "lastTransitionTime" in old:
        return {"lastTransitionTime": old["lastTransitionTime"]}
    return {"lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
