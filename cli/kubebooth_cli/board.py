"""The stages of one session as they pass: what is done, under way or still to come. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kubebooth_cli.session import Session

State = Literal["done", "active", "begun", "waiting"]
_OF_PHASE = {"Fetching": "Fetch", "Preparing": "Prepare"}


@dataclass(frozen=True)
class Row:
    """One stage."""

    stage: str
    state: State
    step: int
    total: int
    """Units of the stage in all; 0 while unknown."""


@dataclass
class Board:
    """Remembers how far each stage came, because a session tells of the current one only."""

    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def rows(self, session: Session) -> tuple[Row, ...]:
        """Take in a reading and give every stage of the session in order."""
        current = self._current(session)
        progress = session.progress
        if progress is not None:
            self._seen[progress.stage] = (progress.step, progress.total)
        stages = [*session.stages]
        if current and current not in stages:
            stages.append(current)
        at = stages.index(current) if current else -1
        return tuple(
            self._row(stage, index - at, complete=session.ended is True)
            for index, stage in enumerate(stages)
        )

    def _row(self, stage: str, distance: int, *, complete: bool) -> Row:
        step, total = self._seen.get(stage, (0, 0))
        if complete:
            return Row(stage, "done", max(step, total), total)
        if distance == 0:
            return Row(stage, "active", step, total)
        if distance < 0 and step >= total:
            return Row(stage, "done", step, total)
        # Samples are painted in between: the denoiser goes on afterwards.
        return Row(stage, "begun" if step else "waiting", step, total)

    @staticmethod
    def _current(session: Session) -> str:
        if session.phase == "Exporting":
            return "Export"
        if session.progress is not None:
            return session.progress.stage
        return _OF_PHASE.get(session.phase, "")
