"""Facts and situation → the whole status: conditions, progress and words for people. Pure.

The phase is written here and read nowhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubebooth_api.v1alpha1.common import Condition
from kubebooth_api.v1alpha1.session import Progress

from kubebooth_operator.doors import Event
from kubebooth_operator.session.asked import PREPARE, TRAIN
from kubebooth_operator.session.facts import Facts
from kubebooth_operator.session.situation import Kind, Situation

CONDITIONS = (
    "Ready",
    "Reconciling",
    "Stalled",
    "Complete",
    "Failed",
    "DatasetReady",
    "ModelReady",
    "CaptionsReady",
    "Approved",
    "QuotaReserved",
    "Trained",
    "Exported",
    "Suspended",
)
"""Every condition of a session, in the order in which they are written."""

_TRAINING_PHASES = {
    "ClassImages": "MakingClassImages",
    "TextEncoder": "TrainingTextEncoder",
    "Denoiser": "TrainingDenoiser",
    "Samples": "Sampling",
    "Publish": "Publishing",
}
_NORMAL = {Kind.WORKING, Kind.STOPPING, Kind.SUSPENDED, Kind.COMPLETE}

_SUMMARY_LENGTH = 100

Said = tuple[bool, str, str]
"""Status, reason and message of a condition."""


def write(
    facts: Facts,
    situation: Situation,
    *,
    stages: Mapping[str, Said],
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """The status that should be; `stages` are the conditions that `stages` or `stages_as_before`
    gave. The same input gives the same status, and times of unchanged conditions stay."""
    said = {**_general(situation), **stages}
    progress = _fitting(facts.progress, situation)
    complete = facts.model_copy(
        update={
            "observed_generation": generation,
            "phase": _phase(situation, progress),
            "message": situation.message,
            "summary": textwrap.shorten(situation.message, _SUMMARY_LENGTH, placeholder=" …"),
            "conditions": _conditions(facts, said, generation=generation, now=now),
            "progress": progress,
            "progress_text": _progress_text(progress, situation),
        }
    )
    return complete.dump()


def events(before: Facts, after: Mapping[str, Any], situation: Situation) -> tuple[Event, ...]:
    """What changed and is worth an event: why Ready is what it is, and what came true."""
    old = {c.type: c for c in before.conditions}
    told: dict[str, Event] = {}
    for condition in after.get("conditions", ()):
        kind, reason, message = condition["type"], condition["reason"], condition["message"]
        known = old.get(kind)
        if kind == "Ready" and (known is None or known.reason != reason):
            normal = situation.kind in _NORMAL
            told[reason] = Event("Normal" if normal else "Warning", reason, message)
        came_true = condition["status"] == "True" and (known is None or known.status != "True")
        if came_true and kind in {"DatasetReady", "Trained", "Complete"}:
            told.setdefault(kind, Event("Normal", kind, message))
    return tuple(told.values())


def _general(situation: Situation) -> dict[str, Said]:
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


def stages(
    facts: Facts, situation: Situation, *, prepared: bool, trained: bool, captions: str
) -> dict[str, Said]:
    """Conditions of the stages. `prepared` and `trained` say whether the facts are about what the
    spec asks for, `captions` is `spec.captions.mode`."""
    quota = situation.quota
    told: dict[str, Said] = {"QuotaReserved": (quota.holds, quota.reason, quota.message)}
    told |= _prepared(facts, captions) if prepared else _unprepared(situation)
    names = ", ".join(artifact.name for artifact in facts.artifacts)
    if trained:
        told["Trained"] = (True, "Trained", "the step targets are reached")
        told["Exported"] = (True, "Published", f"published: {names}")
        return told
    failed = situation.kind is Kind.FAILED and situation.stage == TRAIN
    reason = situation.reason if failed else "NotYet"
    told["Trained"] = (False, reason, situation.message if failed else "not yet trained")
    older = f"; of an earlier run: {names}" if names else ""
    told["Exported"] = (False, reason, f"not yet published{older}")
    return told


def stages_as_before(facts: Facts, situation: Situation) -> dict[str, Said]:
    """Conditions of the stages as they were: what is asked now cannot be told."""
    told = stages(facts, situation, prepared=False, trained=False, captions="")
    for old in facts.conditions:
        if old.type in told:
            told[old.type] = (old.status == "True", old.reason, old.message)
    return told


def _prepared(facts: Facts, captions: str) -> dict[str, Said]:
    dataset, model = facts.dataset, facts.base_model
    if dataset is None or model is None:
        return _pending("NotYet", "not yet prepared")
    refused = f", {dataset.rejected} refused" if dataset.rejected else ""
    told = {
        "DatasetReady": (True, "Prepared", f"{dataset.images} pictures{refused}"),
        "ModelReady": (True, "Verified", f"base model {model.name} is verified"),
        "CaptionsReady": (
            True,
            "FromFiles",
            f"{dataset.captioned} of {dataset.images} pictures have a caption of their own",
        ),
        "Approved": (True, "AutoApproved", "review: Auto approves what could be prepared"),
    }
    if captions == "None":
        told["CaptionsReady"] = (True, "NotRequested", "every picture takes the instance prompt")
    return told


def _unprepared(situation: Situation) -> dict[str, Said]:
    if situation.stage == PREPARE and situation.kind in {Kind.FAILED, Kind.RETRYING}:
        return _pending(situation.reason, situation.message)
    return _pending("NotYet", "not yet prepared")


def _pending(reason: str, message: str) -> dict[str, Said]:
    return {
        "DatasetReady": (False, reason, message),
        "ModelReady": (False, reason, message),
        "CaptionsReady": (False, "NotYet", "the pictures are not yet prepared"),
        "Approved": (False, "NotYet", "the pictures are not yet prepared"),
    }


def _conditions(
    facts: Facts, said: Mapping[str, Said], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    old = {condition.type: condition for condition in facts.conditions}
    return tuple(
        condition(old.get(kind), kind, said[kind], generation=generation, now=now)
        for kind in CONDITIONS
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


def _fitting(progress: Progress | None, situation: Situation) -> Progress | None:
    """Progress of the stage that is under way; a prepare's is no news once training begins."""
    if progress is None or situation.stage == "":
        return progress
    return progress if (progress.stage == PREPARE) == (situation.stage == PREPARE) else None


def _phase(situation: Situation, progress: Progress | None) -> str:
    fixed = {
        Kind.HELD_UP: "Waiting",
        Kind.RETRYING: "Retrying",
        Kind.STOPPING: "Stopping",
        Kind.SUSPENDED: "Suspended",
        Kind.COMPLETE: "Complete",
        Kind.FAILED: "Failed",
        Kind.STALLED: "Stalled",
    }
    if situation.kind in fixed:
        return fixed[situation.kind]
    if situation.stage == "Purge":
        return "Purging"
    if situation.stage == PREPARE:
        return "Preparing"
    if progress is None:
        return "Starting"
    return _TRAINING_PHASES.get(progress.stage, "Training")


def _progress_text(progress: Progress | None, situation: Situation) -> str | None:
    if situation.kind is Kind.COMPLETE:
        return "100%"
    if progress is None:
        return None
    text = f"{progress.stage} {progress.step}/{progress.total_steps} {progress.percentage}%"
    left_s = progress.estimated_remaining_seconds
    if left_s is None or situation.kind is not Kind.WORKING:
        return text[:64]
    return f"{text} {_duration(left_s)}"[:64]


def _duration(seconds: int) -> str:
    """`3h12m`, `3m12s` or `12s`."""
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
