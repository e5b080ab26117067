"""The last stage of a session: its owned conversions are made, watched and cleared away. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubebooth_api.v1alpha1.publish import Output
from kubebooth_api.v1alpha1.session import (
    DreamboothSessionSpec,
    DreamboothSessionStatus,
    Progress,
)

from kubebooth_operator.differences import lacks
from kubebooth_operator.doors import ChildRef
from kubebooth_operator.jobs.situation import RELEASED, Kind, Situation
from kubebooth_operator.jobs.steps import Context, Step
from kubebooth_operator.session import exports, facts
from kubebooth_operator.session.exports import Export
from kubebooth_operator.session.facts import Facts

EXPORT = "Export"
"""Stage of a session in which conversions are at work."""


@dataclass(frozen=True)
class Exported:
    """What to do about the conversions, and what is known after it."""

    facts: Facts
    situation: Situation | None = None
    """None when every output is published."""
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[ChildRef, ...] = ()


def pause(
    there: Iterable[Export],
    outputs: Iterable[Output],
    step: Step[DreamboothSessionStatus],
) -> Step[DreamboothSessionStatus]:
    """While workers are at it, conversions of an earlier model are stopped, and what they have
    published stays."""
    wanted = {output.name for output in outputs}
    idle = tuple(
        export.ref
        for export in there
        if not export.terminating and (export.artifact is None or export.output not in wanted)
    )
    return replace(step, delete=(*step.delete, *idle)) if idle else step


def pursue(
    context: Context[DreamboothSessionStatus],
    spec: DreamboothSessionSpec,
    there: tuple[Export, ...],
    known: Facts,
) -> Exported:
    """Bring the conversions to what the spec asks of the trained model."""
    wanted = exports.manifests(context.seen, spec, context.place, known)
    names = frozenset(wanted)
    known = facts.with_exported(known, exports.published(there, wanted), names)
    gone = exports.superseded(there, wanted)
    delete = tuple(e.ref for e in there if e.name in gone and not e.terminating)
    current = {
        output: next((e for e in there if e.name == m["metadata"]["name"]), None)
        for output, m in wanted.items()
    }
    pending = {o: e for o, e in current.items() if e is None or e.artifact is None}
    apply = tuple(m for o, m in wanted.items() if _is_due(m, current[o], begin=not spec.suspend))
    if not pending:
        return Exported(_counted(context, known, len(wanted), len(wanted)), None, apply, delete)
    known = known.model_copy(update={"completed_at": None})
    known = _counted(context, known, len(wanted) - len(pending), len(wanted))
    situation = _situation(pending, suspended=spec.suspend)
    return Exported(known, situation, apply, delete)


def _is_due(manifest: dict[str, Any], there: Export | None, *, begin: bool) -> bool:
    """Whether a conversion must be made or told something. A suspended session begins nothing;
    what it began is told to pause."""
    if there is None:
        return begin
    return not there.terminating and lacks(manifest, there.manifest)


def _situation(pending: Mapping[str, Export | None], *, suspended: bool) -> Situation:
    for kind, condition in ((Kind.FAILED, "Failed"), (Kind.STALLED, "Stalled")):
        for output, export in pending.items():
            if export is not None and export.holds(condition):
                reason, message = export.why()
                told = f"output {output}: {message}"
                return Situation(kind, reason, told, stage=EXPORT, quota=RELEASED)
    if suspended:
        busy = [e for e in pending.values() if e is not None and not e.holds("Suspended")]
        if not busy:
            message = "suspended; set spec.suspend to false to go on with the exports"
            return Situation(Kind.SUSPENDED, "Suspended", message, stage=EXPORT, quota=RELEASED)
        message = f"conversion {busy[0].name} stops"
        return Situation(Kind.STOPPING, "Suspending", message, stage=EXPORT, quota=RELEASED)
    told = "; ".join(_told(output, export) for output, export in pending.items())
    return Situation(Kind.WORKING, "Exporting", told, stage=EXPORT, quota=RELEASED)


def _told(output: str, export: Export | None) -> str:
    if export is None:
        return f"output {output} is about to be converted"
    return f"output {output}: {export.why()[1][:200]}"


def _counted(
    context: Context[DreamboothSessionStatus], known: Facts, done: int, total: int
) -> Facts:
    """Progress in outputs; the same numbers leave it as it is."""
    if total == 0:
        return known
    told = known.progress
    if told is not None and (told.stage, told.step, told.total_steps) == (EXPORT, done, total):
        return known
    progress = Progress(
        stage=EXPORT,
        step=done,
        total_steps=total,
        percentage=100 if done == total else 99,
        updated_at=context.now,
    )
    return known.model_copy(update={"progress": progress})
