"""A simulated operator on an API server in memory, for property tests of plans.

The operator's own cache, queue, cluster and reconciler run here, with neither network nor clock:
the test decides which event arrives, which is lost, when the operator dies between two writes and
when time passes. It must not know any plan.

    sim = Simulator({"dreamboothsessions": Kind("dreamboothsessions", "DreamboothSession", plan)})
    key = sim.create(manifest)
    sim.settle()                       # deliver, reconcile, let time pass, until all is quiet
    assert sim.quiet()                 # once more changes nothing

`sim.server` is the server: `find`, `all`, `edit`, `set_status` act as users and controllers do;
`sim.worlds` are functions `(server) -> None` called in each round, such as a Job controller.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from kubebooth_api.runs import WorkerStatus
from kubebooth_operator.cache import Cache
from kubebooth_operator.client import Json
from kubebooth_operator.cluster import Cluster
from kubebooth_operator.doors import Event, Key, Manifest
from kubebooth_operator.errors import ApiError
from kubebooth_operator.kinds import Kind, plurals
from kubebooth_operator.queue import WorkQueue
from kubebooth_operator.reconcile import Outcome, Reconciler
from kubebooth_operator.resources import Resource, Resources
from kubebooth_operator.resync import resync
from kubebooth_operator.workers import schedule

from tests.unit.operator_core.memory_server import Crash, Faults, MemoryServer, Write, selected

__all__ = ["START", "Crash", "Faults", "MemoryServer", "Simulator", "Told", "Write", "run"]

T = TypeVar("T")
START = datetime(2026, 1, 1, tzinfo=UTC)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waited for something outside the simulation")


@dataclass
class Told:
    """Remembers what reconciles tell."""

    events: list[Event] = field(default_factory=list)
    polled: set[Key] = field(default_factory=set)

    def event(self, parent: Manifest, event: Event) -> None:
        self.events.append(event)

    def poll(self, key: Key, *, wanted: bool) -> None:
        if wanted:
            self.polled.add(key)
        else:
            self.polled.discard(key)


class Simulator:
    """One operator on one server, under the control of a test."""

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        *,
        seed: int = 0,
        worlds: Sequence[Callable[[MemoryServer], None]] = (),
    ) -> None:
        self.kinds = kinds
        self.random = random.Random(seed)
        self.now = START
        self.resources = Resources(plurals(kinds))
        self.server = MemoryServer(self.resources, lambda: self.now)
        self.worlds = list(worlds)
        self.told = Told()
        self.workers: dict[Key, WorkerStatus] = {}
        """What running workers say; set by tests."""
        self.outcomes: list[tuple[Key, Outcome]] = []
        self.failures: list[tuple[Key, ApiError]] = []
        self.boot()

    def boot(self) -> None:
        """Start the operator anew: it knows nothing, lists everything and looks at all of it."""
        self._seen = len(self.server.log)
        self.cache = Cache(self.resources)
        self.queue: WorkQueue[Key] = WorkQueue(clock=self._clock, jitter=self.random.random)
        cluster = Cluster(
            self.server, self.cache, self.resources, worker=self.workers.get, wake=self.queue.add
        )
        self.cluster = cluster
        self.reconciler = Reconciler(cluster, self.kinds, self.told, now=lambda: self.now)
        self.resync()

    # --- users ------------------------------------------------------------------------------

    def create(self, body: Mapping[str, Any]) -> Key:
        """Create a custom resource as a user."""
        created = self.server.put(body["kind"], body)
        metadata = created["metadata"]
        plural = self.server.kind(body["kind"]).plural
        return Key(plural, metadata["namespace"], metadata["name"])

    def parent(self, key: Key) -> Json | None:
        """A copy of a custom resource as the server has it."""
        return self.server.find(self.kinds[key.plural].kind, key.namespace, key.name)

    def edit_spec(self, key: Key, **fields: Any) -> None:
        """Change fields of the spec as a user."""
        self.server.edit(
            self.kinds[key.plural].kind,
            key.namespace,
            key.name,
            lambda body: body["spec"].update(fields),
        )

    def delete(self, key: Key) -> None:
        """Delete a custom resource as a user."""
        self.server.remove(self.kinds[key.plural].kind, key.namespace, key.name)

    # --- what happens to the operator ----------------------------------------------------------

    @property
    def undelivered(self) -> int:
        """How many events have not arrived yet."""
        return len(self.server.log) - self._seen

    def deliver(self, count: int | None = None) -> None:
        """Let events arrive: the next `count`, or all."""
        for _ in range(self.undelivered if count is None else min(count, self.undelivered)):
            self._event(*self.server.log[self._seen])
            self._seen += 1

    def lose(self, count: int = 1) -> None:
        """Lose the next `count` events."""
        self._seen = min(self._seen + count, len(self.server.log))

    def replay(self, index: int) -> None:
        """Let an old event arrive once more, as a stale stream does."""
        if self.server.log:
            self._event(*self.server.log[index % len(self.server.log)])

    def resync(self) -> None:
        """Compare the cache with full lists."""
        for resource in self.resources:
            for key in sorted(
                run(resync(self.server, self.cluster, self.cache, resource)), key=str
            ):
                self.queue.add(key)

    def work(self) -> bool:
        """One reconcile of the next key that is due. False when none is."""
        key = self.queue.take()
        if key is None:
            return False
        try:
            outcome = run(self.reconciler.reconcile(key))
        except Crash:
            self.server.faults = Faults()
            self.boot()
            return True
        except ApiError as error:
            self.failures.append((key, error))
            self.queue.retry(key)
            self.queue.done(key)
            return True
        self.outcomes.append((key, outcome))
        schedule(self.queue, key, outcome)
        self.queue.done(key)
        return True

    def crash(self) -> None:
        """kill -9 between two reconciles, and a new start."""
        self.boot()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def settle(self, *, rounds: int = 200, horizon_s: float = 3600.0) -> None:
        """Let worlds act, events arrive and keys be worked on, and time pass to what is due, until
        nothing changes any more. AssertionError when that takes more than `rounds`; what is due
        later than `horizon_s` from now is not waited for."""
        end = self.now + timedelta(seconds=horizon_s)
        for _ in range(rounds):
            before = len(self.server.log)
            for world in self.worlds:
                world(self.server)
            self.server.collect_garbage()
            self.deliver()
            while self.work():
                self.deliver()
            if len(self.server.log) != before:
                continue
            self.resync()
            if len(self.queue):
                continue
            due = self.queue.next_due()
            if due is None or START + timedelta(seconds=due) > end:
                return
            if self._only_idle_requeues(before):
                return
            self.now = max(self.now, START + timedelta(seconds=due + 0.001))
        writes = [f"{w.verb} {w.kind}/{w.name}" for w in self.server.writes[-12:]]
        raise AssertionError(f"not quiet after {rounds} rounds; last writes: {writes}")

    def quiet(self) -> bool:
        """Whether looking at everything once more writes nothing."""
        before = len(self.server.writes)
        for resource in self.resources.custom:
            for namespace, name in self.cache.names(resource):
                self.queue.add(Key(resource.plural, namespace, name))
        while self.work():
            self.deliver()
        return len(self.server.writes) == before

    def restless(self) -> bool:
        """Whether something is looked at again at once although nothing changes."""
        due = self.queue.next_due()
        return due is not None and due - self._clock() < 1.0

    # --- inside ----------------------------------------------------------------------------------

    def _clock(self) -> float:
        return (self.now - START).total_seconds()

    def _event(self, type_: str, resource: Resource, body: Json) -> None:
        metadata = body["metadata"]
        keys = self.cache.concerned(resource, body)
        name = (metadata["namespace"], metadata["name"])
        # What no longer has the selected labels is told as deleted.
        if type_ == "DELETED" or not selected(resource, body):
            uid, version = metadata["uid"], metadata["resourceVersion"]
            changed = self.cache.drop(resource, name, uid=uid, version=version)
        else:
            changed = self.cache.put(resource, body)
        if changed:
            for key in keys:
                self.queue.add(key)

    def _only_idle_requeues(self, before: int) -> bool:
        """Whether a whole turn of what is due later changed nothing."""
        self._idle = getattr(self, "_idle", 0) + 1 if len(self.server.log) == before else 0
        return self._idle > 30
