"""Situation → what every kind's status and events say of it. Pure.

The phase is written here and read nowhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from kubebooth_api.v1alpha1.common import Condition
from kubebooth_api.v1alpha1.session import Progress

from kubebooth_operator.doors import Event
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.work import CONVERT, FETCH, PREPARE, PURGE

GENERAL = ("Ready", "Reconciling", "Stalled", "Complete", "Failed")
"""Conditions of every kind, in the order in which they are written."""
_NORMAL = {Kind.WORKING, Kind.STOPPING, Kind.SUSPENDED, Kind.COMPLETE}
_PHASES = {
    Kind.HELD_UP: "Waiting",
    Kind.RETRYING: "Retrying",
    Kind.STOPPING: "Stopping",
    Kind.SUSPENDED: "Suspended",
    Kind.COMPLETE: "Complete",
    Kind.FAILED: "Failed",
    Kind.STALLED: "Stalled",
}
_WORKING_PHASES = {
    FETCH: "Fetching",
    PREPARE: "Preparing",
    CONVERT: "Converting",
    PURGE: "Purging",
    "Export": "Exporting",
}
_SUMMARY_LENGTH = 100

Said = tuple[bool, str, str]
"""Status, reason and message of a condition."""


def general(situation: Situation) -> dict[str, Said]:
    """The conditions that every kind has."""
    kind, reason, message = situation.kind, situation.reason, situation.message
    busy = kind in {Kind.WORKING, Kind.HELD_UP, Kind.RETRYING, Kind.STOPPING}
    return {
        "Ready": (kind is Kind.COMPLETE, reason, message),
        "Reconciling": (busy, reason, message if busy else "nothing is under way"),
        "Stalled": _if(kind in {Kind.STALLED, Kind.FAILED}, situation, "NotStalled"),
        "Complete": _if(kind is Kind.COMPLETE, situation, "NotComplete"),
        "Failed": _if(kind is Kind.FAILED, situation, "NotFailed"),
        "Suspended": _if(kind is Kind.SUSPENDED, situation, "NotSuspended"),
    }


def _if(holds: bool, situation: Situation, otherwise: str) -> Said:
    if holds:
        return True, situation.reason, situation.message
    words = {
        "NotStalled": "the spec can be followed",
        "NotComplete": "not yet complete",
        "NotFailed": "no try has failed for good",
        "NotSuspended": "not suspended",
    }
    return False, otherwise, words[otherwise]


def conditions(
    known: Iterable[Condition],
    said: Mapping[str, Said],
    *,
    order: Iterable[str],
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """All conditions in order; times of those whose status did not change stay."""
    old = {condition.type: condition for condition in known}
    return tuple(
        condition(old.get(kind), kind, said[kind], generation=generation, now=now) for kind in order
    )


def condition(
    old: Condition | None, kind: str, said: Said, *, generation: int, now: datetime
) -> Condition:
    """One condition; the time of its last transition stays while its status does."""
    holds, reason, message = said
    status = "True" if holds else "False"
    same = old is not None and old.status == status
    return Condition.model_validate(
        {
            "type": kind,
            "status": status,
            "observed_generation": generation,
            "last_transition_time": old.last_transition_time if old and same else now,
            "reason": reason,
            "message": message,
        }
    )


def events(
    known: Iterable[Condition],
    after: Mapping[str, Any],
    situation: Situation,
    *,
    milestones: Collection[str],
) -> tuple[Event, ...]:
    """What changed and is worth an event: why Ready is what it is, and which milestones came
    true."""
    old = {c.type: c for c in known}
    told: dict[str, Event] = {}
    for entry in after.get("conditions", ()):
        kind, reason, message = entry["type"], entry["reason"], entry["message"]
        before = old.get(kind)
        if kind == "Ready" and (before is None or before.reason != reason):
            normal = situation.kind in _NORMAL
            told[reason] = Event("Normal" if normal else "Warning", reason, message)
        came_true = entry["status"] == "True" and (before is None or before.status != "True")
        if came_true and kind in milestones:
            told.setdefault(kind, Event("Normal", kind, message))
    return tuple(told.values())


def phase(situation: Situation, *, working: str) -> str:
    """One word for people; `working` is what a worker without a word of its own does."""
    if situation.kind in _PHASES:
        return _PHASES[situation.kind]
    return _WORKING_PHASES.get(situation.stage, working)


def summary(message: str) -> str:
    """A message cut to fit a line of `kubectl get`."""
    return textwrap.shorten(message, _SUMMARY_LENGTH, placeholder=" …")


def progress_text(progress: Progress | None, situation: Situation) -> str | None:
    """Progress in a few words."""
    if situation.kind is Kind.COMPLETE:
        return "100%"
    if progress is None:
        return None
    text = f"{progress.stage} {_units(progress)} {progress.percentage}%"
    left_s = progress.estimated_remaining_seconds
    if left_s is None or situation.kind is not Kind.WORKING:
        return text[:64]
    return f"{text} {_duration(left_s)}"[:64]


def _units(progress: Progress) -> str:
    """`3/20`, or bytes in readable units: a fetch counts in MiB, a conversion in bytes."""
    if progress.stage == FETCH:
        return f"{progress.step}/{progress.total_steps} MiB"
    if progress.stage != CONVERT:
        return f"{progress.step}/{progress.total_steps}"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if progress.total_steps >= size:
            return f"{progress.step / size:.1f}/{progress.total_steps / size:.1f} {unit}"
    return f"{progress.step}/{progress.total_steps} B"


def _duration(seconds: int) -> str:
    """`3h12m`, `3m12s` or `12s`."""
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
