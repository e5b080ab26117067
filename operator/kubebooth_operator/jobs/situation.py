"""In which situation an object is: the one word that everything told about it follows from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

_LONGEST_MESSAGE = 1024


class Kind(Enum):
    """What is being done about an object."""

    WORKING = auto()
    """A worker runs or is about to."""
    HELD_UP = auto()
    """Something outside is missing; it goes on by itself once that is there."""
    RETRYING = auto()
    """A try failed and the next one is due later."""
    STOPPING = auto()
    """A worker that is not wanted any more is saving its state."""
    SUSPENDED = auto()
    COMPLETE = auto()
    FAILED = auto()
    """Nothing happens until the spec changes or a retry is asked for."""
    STALLED = auto()
    """The spec cannot be followed as it is."""


def fit_reason(reason: str) -> str:
    """A reason from outside as one word that a condition may have."""
    word = re.sub(r"[^A-Za-z0-9_]", "", reason)[:128]
    return word if word[:1].isalpha() else "Unknown"


def fit_message(message: str) -> str:
    """A message from outside, cut to what a status may have."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[: _LONGEST_MESSAGE - 2].rstrip()} …"


@dataclass(frozen=True)
class Quota:
    """Whether the train pod has its place. Words from outside are made fit."""

    holds: bool
    reason: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", fit_reason(self.reason))
        object.__setattr__(self, "message", fit_message(self.message))


NOT_YET = Quota(False, "NotYet", "training has not asked for resources yet")
HELD = Quota(True, "Reserved", "the train pod has its place on a node")
RELEASED = Quota(False, "Released", "nothing is reserved any more")


@dataclass(frozen=True)
class Situation:
    """What is the case, for machines and for people. Words from outside are made fit."""

    kind: Kind
    reason: str
    message: str
    stage: str = ""
    """Stage of the work it speaks of, `Export`, or empty."""
    quota: Quota = NOT_YET

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", fit_reason(self.reason))
        object.__setattr__(self, "message", fit_message(self.message))
