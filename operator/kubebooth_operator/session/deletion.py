"""A session that is being deleted and wants its data gone → stop, purge, let go. Pure."""

from __future__ import annotations

from datetime import datetime

from kubebooth_api.door import explain
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec, DreamboothSessionStatus
from pydantic import ValidationError

from kubebooth_operator.doors import Plan, Stalled
from kubebooth_operator.jobs import deletion
from kubebooth_operator.jobs import facts as tries
from kubebooth_operator.jobs.readings import Seen
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.steps import Context, Step, Terms, look_again
from kubebooth_operator.jobs.work import PURGE, resolve_place
from kubebooth_operator.session import asked, status
from kubebooth_operator.session.exports import Export
from kubebooth_operator.settings import Settings

Session = Seen[DreamboothSessionStatus]


def plan(session: Session, owned: tuple[Export, ...], now: datetime, settings: Settings) -> Plan:
    """What should be done about a session with a deletion timestamp."""
    gone = deletion.let_go(session)
    if gone is not None:
        return gone
    if owned:
        # They read what the purge deletes, and delete what they wrote themselves.
        names = ", ".join(export.name for export in owned)
        situation = Situation(
            Kind.STOPPING, "Purging", f"waits until the conversions {names} are gone", stage=PURGE
        )
        refs = tuple(export.ref for export in owned if not export.terminating)
        return _tell(session, Step(situation, session.status, delete=refs), now)
    try:
        spec = DreamboothSessionSpec.parse(session.spec)
        place = resolve_place(spec.storage, settings)
    except ValidationError as error:
        return _tell(session, deletion.blocked("InvalidSpec", explain(error), session), now)
    except Stalled as stalled:
        return _tell(session, deletion.blocked(stalled.reason, stalled.message, session), now)
    terms = Terms(suspend=spec.suspend, retry=spec.retry, runtime=spec.runtime)
    identity = SessionIdentity(namespace=session.namespace, name=session.name, uid=session.uid)
    work = asked.purge(spec, identity, place)
    goodbye = deletion.purge(Context(session, terms, place, settings, now), work)
    return goodbye if isinstance(goodbye, Plan) else _tell(session, goodbye, now)


def _tell(session: Session, step: Step[DreamboothSessionStatus], now: datetime) -> Plan:
    known = tries.with_attempts(step.facts, session.pods)
    written = status.write(
        known,
        step.situation,
        stages=status.stages_as_before(known, step.situation),
        generation=session.generation,
        now=now,
    )
    return Plan(
        apply=step.apply,
        delete=step.delete,
        status=written,
        events=status.events(session.status, written, step.situation),
        requeue_after_s=look_again(step.apply, step.delete, after_s=step.requeue_after_s),
        decision=f"{step.situation.reason}: {step.situation.message}",
    )
