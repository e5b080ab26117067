"""One reconcile: observe, plan, act. It knows neither HTTP nor kopf, and keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from kubebooth_operator.cluster import Cluster
from kubebooth_operator.conditions import stalled_status
from kubebooth_operator.doors import Event, Key, Manifest, Observed, Plan, Stalled, Waiting
from kubebooth_operator.errors import Conflict, NotFound
from kubebooth_operator.kinds import Kinds

STALLED_LOOK_AGAIN_S = 60.0
"""What blocks a stalled object may be somebody else's and send us no event."""


class PlanFault(Exception):
    """A plan failed with an error that is none of its own two: a fault of ours."""


_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
"""Errors of code rather than of the world; `ValueError` is caught beside them."""


class Witness(Protocol):
    """Told what a reconcile wants others to do or know. Must not block."""

    def event(self, parent: Manifest, event: Event) -> None:
        """Tell of a change."""

    def poll(self, key: Key, *, wanted: bool) -> None:
        """Whether the worker of a key should be asked for its progress."""


@dataclass(frozen=True)
class Outcome:
    """What one reconcile did."""

    result: str
    """`unchanged`, `changed`, `stalled`, `conflict` or `gone`."""
    decision: str = ""
    """Why, in one line."""
    generation: int | None = None
    """Generation of the object that was planned."""
    writes: tuple[str, ...] = ()
    """Every change that was made, such as `created Job/x`."""
    requeue_after_s: float | None = None
    """Look again after so many seconds even if nothing happens."""


class Reconciler:
    """Binds the kinds to a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        kinds: Kinds,
        witness: Witness,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._witness = witness
        self._now = now

    async def reconcile(self, key: Key) -> Outcome:
        """Bring one object nearer to what it asks. Raises `ApiError` of requests that failed
        and `PlanFault`; whatever was done by then is seen by the next reconcile."""
        observed = self._cluster.observe(key)
        if observed is None:
            self._witness.poll(key, wanted=False)
            return Outcome("gone", "the object is gone; Kubernetes deletes what it owned")
        now = self._now()
        plan, stalled = self._plan(key, observed, now)
        writes: list[str] = []
        try:
            stalled = await self._children(observed, plan, writes) or stalled
            changed = any(not write.startswith("kept") for write in writes)
            parent = await self._tell(key, observed, plan, stalled, writes)
            await self._finalizer(key, parent, plan, writes)
        except (Conflict, NotFound) as error:
            # The cache was behind. Nothing is lost: look again with what is there now.
            await self._cluster.refresh(key)
            return _outcome("conflict", f"{plan.decision}: {error}", observed, writes, None)
        self._witness.poll(key, wanted=plan.poll_progress)
        # What we did to children is known before any stream tells: no event will wake us.
        again_s = 0.0 if changed else plan.requeue_after_s
        if stalled is not None:
            told = f"{stalled.reason}: {stalled.message}"
            again_s = 0.0 if changed else STALLED_LOOK_AGAIN_S
            return _outcome("stalled", told, observed, writes, again_s)
        result = "changed" if writes else "unchanged"
        return _outcome(result, plan.decision, observed, writes, again_s)

    def _plan(self, key: Key, observed: Observed, now: datetime) -> tuple[Plan, Stalled | None]:
        try:
            return self._kinds[key.plural].plan(observed, now), None
        except Waiting as waiting:
            told = f"{waiting.reason}: {waiting.message}"
            return Plan(requeue_after_s=waiting.delay_s, decision=told), None
        except Stalled as stalled:
            return Plan(decision=stalled.reason), stalled
        except (*_FAULTS, ValueError) as error:
            # One object that no plan was made for must not take the others down with it.
            told = f"{type(error).__name__}: {error}"
            message = f"a fault of the operator, please report it: {told}; it is tried again"
            self._witness.event(observed.parent, Event("Warning", "InternalError", message))
            raise PlanFault(told) from error

    async def _children(self, observed: Observed, plan: Plan, writes: list[str]) -> Stalled | None:
        for reference in plan.delete:
            done = "deleted" if await self._cluster.delete(reference) else "unchanged"
            _note(writes, done, reference.kind, reference.name)
        for manifest in plan.apply:
            try:
                done = await self._cluster.apply(observed.parent, manifest)
            except Stalled as stalled:
                # What would come after the child that cannot be must not be made either.
                return stalled
            _note(writes, done, manifest["kind"], manifest["metadata"]["name"])
        return None

    async def _tell(
        self,
        key: Key,
        observed: Observed,
        plan: Plan,
        stalled: Stalled | None,
        writes: list[str],
    ) -> Manifest:
        """Write the status if it differs; gives the parent as it is afterwards."""
        parent, status, events = observed.parent, plan.status, plan.events
        if stalled is not None:
            reason, message = stalled.reason, stalled.message
            status = stalled_status(status, parent, reason=reason, message=message, now=self._now())
            events = (Event("Warning", reason, message),)
        if status is None:
            return parent
        written = await self._cluster.write_status(key, parent, status)
        if written is None:
            return parent
        writes.append("status")
        for event in events:
            self._witness.event(parent, event)
        return written

    async def _finalizer(self, key: Key, parent: Manifest, plan: Plan, writes: list[str]) -> None:
        if plan.finalizer is None:
            return
        if await self._cluster.set_finalizer(key, parent, present=plan.finalizer):
            writes.append("finalizer added" if plan.finalizer else "finalizer removed")


def _note(writes: list[str], done: str, kind: str, name: str) -> None:
    if done != "unchanged":
        writes.append(f"{done} {kind}/{name}")


def _outcome(
    result: str, decision: str, observed: Observed, writes: list[str], again_s: float | None
) -> Outcome:
    generation = observed.parent["metadata"].get("generation")
    return Outcome(result, decision, generation, tuple(writes), again_s)
