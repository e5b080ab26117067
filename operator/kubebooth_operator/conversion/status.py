"""Facts and situation → the whole status of a conversion. Pure.

The phase is written here and read nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubebooth_operator.conversion.facts import Facts
from kubebooth_operator.doors import Event
from kubebooth_operator.jobs import telling
from kubebooth_operator.jobs.facts import stage_of
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.telling import Said
from kubebooth_operator.jobs.work import FETCH

CONDITIONS = (*telling.GENERAL, "SourceReady", "Suspended")
"""Every condition of a conversion, in the order in which they are written."""


def write(
    facts: Facts, situation: Situation, *, source: Said, generation: int, now: datetime
) -> dict[str, Any]:
    """The status that should be; `source` is the condition `SourceReady`. The same input gives the
    same status, and times of unchanged conditions stay."""
    progress = facts.progress
    if progress is not None and situation.stage and stage_of(progress) != situation.stage:
        progress = None
    said = {**telling.general(situation), "SourceReady": source}
    complete = facts.model_copy(
        update={
            "observed_generation": generation,
            "phase": telling.phase(situation, working="Starting"),
            "message": situation.message,
            "summary": telling.summary(situation.message),
            "conditions": telling.conditions(
                facts.conditions, said, order=CONDITIONS, generation=generation, now=now
            ),
            "progress": progress,
            "progress_text": telling.progress_text(progress, situation),
        }
    )
    return complete.dump()


def source_ready(facts: Facts, situation: Situation, *, found: bool) -> Said:
    """Whether everything that is converted stands in the store."""
    if found:
        return True, "Found", "the models to read stand in the store"
    known = next((c for c in facts.conditions if c.type == "SourceReady"), None)
    if situation.stage == FETCH:
        return False, situation.reason, situation.message
    if situation.kind is Kind.STALLED and known is not None:
        return known.status == "True", known.reason, known.message
    return False, "NotYet", "not yet looked for"


def events(before: Facts, after: Mapping[str, Any], situation: Situation) -> tuple[Event, ...]:
    """What changed and is worth an event."""
    return telling.events(before.conditions, after, situation, milestones={"Complete"})
