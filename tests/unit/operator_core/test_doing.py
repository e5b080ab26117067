"""Reconciles, workers and events on the memory server."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any

import pytest
from kubebooth_operator.conditions import stalled_status
from kubebooth_operator.doors import Event, Key, Observed, Plan, Stalled, Waiting
from kubebooth_operator.errors import ApiError, Forbidden, Invalid, Unavailable
from kubebooth_operator.kinds import Kind
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.queue import WorkQueue
from kubebooth_operator.reconcile import Outcome, PlanFault
from kubebooth_operator.recorder import Recorder
from kubebooth_operator.resources import EVENTS, Resources
from kubebooth_operator.workers import work

from tests.unit.operator_core.simulator import START, MemoryServer, Simulator, run
from tests.unit.operator_core.tiny import KIND, KINDS, PLURAL, tiny

KEY = Key(PLURAL, "default", "one")


def simulated(plan: Any) -> Simulator:
    sim = Simulator({PLURAL: Kind(PLURAL, KIND, plan)})
    sim.create(tiny(value=1))
    sim.deliver()
    return sim


def test_a_plan_that_waits_is_looked_at_again_when_it_says() -> None:
    def plan(observed: Observed, now: datetime) -> Plan:
        raise Waiting("NoStore", "the store is away", delay_s=12.0)

    outcome = run(simulated(plan).reconciler.reconcile(KEY))
    assert outcome.requeue_after_s == 12.0
    assert outcome.decision == "NoStore: the store is away"


def test_a_plan_that_stalls_is_told_in_conditions() -> None:
    def plan(observed: Observed, now: datetime) -> Plan:
        raise Stalled("InvalidSpec", "spec.value: too big; lower it")

    sim = simulated(plan)
    outcome = run(sim.reconciler.reconcile(KEY))
    assert outcome.result == "stalled"
    parent = sim.parent(KEY)
    assert parent is not None
    conditions = {c["type"]: (c["status"], c["reason"]) for c in parent["status"]["conditions"]}
    assert conditions == {
        "Ready": ("False", "InvalidSpec"),
        "Reconciling": ("False", "InvalidSpec"),
        "Stalled": ("True", "InvalidSpec"),
    }
    assert sim.told.events == [Event("Warning", "InvalidSpec", "spec.value: too big; lower it")]


def test_a_plan_with_a_fault_of_ours_is_named_as_one() -> None:
    def plan(observed: Observed, now: datetime) -> Plan:
        raise KeyError("spec")

    sim = simulated(plan)
    with pytest.raises(PlanFault, match="KeyError"):
        run(sim.reconciler.reconcile(KEY))
    assert [event.reason for event in sim.told.events] == ["InternalError"]


@pytest.mark.parametrize(
    ("error", "reason"), [(Invalid, "ChildInvalid"), (Forbidden, "ChildForbidden")]
)
def test_a_child_that_the_server_refuses_is_told_with_its_words(
    error: type[ApiError], reason: str
) -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1))

    async def refuse(*_: Any, **__: Any) -> Any:
        raise error("exceeded quota: gpus")

    sim.server.apply = refuse  # type: ignore[method-assign]
    sim.deliver()
    sim.work()
    parent = sim.parent(KEY)
    assert parent is not None
    conditions = {c["type"]: c for c in parent["status"]["conditions"]}
    assert conditions["Stalled"]["reason"] == reason
    assert "exceeded quota: gpus" in conditions["Stalled"]["message"]
    del sim.server.apply
    sim.settle()
    assert sim.server.find("ConfigMap", "default", "one") is not None


def test_a_child_that_is_already_going_is_not_deleted_again() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1, jobs=True))
    sim.settle()

    def hold(body: dict[str, Any]) -> None:
        body["metadata"]["finalizers"] = ["foregroundDeletion"]

    sim.server.edit("Job", "default", "one-1", hold)
    sim.edit_spec(KEY, jobs=False)
    sim.settle()
    assert sim.server.find("Job", "default", "one-1") is not None
    assert len([write for write in sim.server.writes if write.verb == "delete"]) == 1


def test_transition_times_stay_while_a_condition_stays() -> None:
    parent = {"metadata": {"generation": 3}, "status": {}}
    first = stalled_status(None, parent, reason="R", message="m", now=START)
    later = START.replace(hour=5)
    again = stalled_status(None, {**parent, "status": first}, reason="R", message="m", now=later)
    assert again == first
    assert {c["observedGeneration"] for c in first["conditions"]} == {3}


def test_a_worker_outlives_failures_and_faults_and_waits_longer_each_time() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    metrics = Metrics()
    calls: list[Key] = []

    async def story() -> None:
        stopping = asyncio.Event()

        async def reconcile(key: Key) -> Outcome:
            calls.append(key)
            if len(calls) == 1:
                raise Unavailable("away")
            if len(calls) == 2:
                raise PlanFault("KeyError: 'spec'")
            stopping.set()
            return Outcome("changed", "done", 1, ("status",))

        queue.add(KEY)
        async with asyncio.timeout(20):
            await work(queue, reconcile, metrics, stopping=stopping)

    asyncio.run(story())
    assert calls == [KEY, KEY, KEY]
    text = metrics.text().decode()
    for result in ("error", "fault", "changed"):
        assert f'kubebooth_reconcile_total{{kind="{PLURAL}",result="{result}"}} 1.0' in text
    assert f'kubebooth_status_writes_total{{kind="{PLURAL}"}} 1.0' in text
    assert queue.busy_s() == []


def test_every_decision_is_one_line_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    queue: WorkQueue[Key] = WorkQueue()

    async def story() -> None:
        stopping = asyncio.Event()

        async def reconcile(key: Key) -> Outcome:
            stopping.set()
            return Outcome("changed", "because", 4, ("created Job/a",), 9.0)

        queue.add(KEY)
        await work(queue, reconcile, Metrics(), stopping=stopping)

    asyncio.run(story())
    (record,) = [r for r in caplog.records if r.name == "kubebooth_operator.workers"]
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["key"] == f"{PLURAL}/default/one"
    assert (fields["result"], fields["decision"]) == ("changed", "because")
    assert (fields["generation"], fields["writes"]) == (4, ["created Job/a"])
    assert fields["requeue_after_s"] == 9.0
    assert fields["duration_s"] >= 0


PARENT = {
    "apiVersion": "kubebooth.io/v1alpha1",
    "kind": KIND,
    "metadata": {"name": "one", "namespace": "default", "uid": "u", "resourceVersion": "5"},
}


def recorder(server: MemoryServer, clock: list[float]) -> Recorder:
    return Recorder(server, Metrics(), identity="a", clock=lambda: clock[0])


def test_equal_events_are_one_object_that_counts() -> None:
    server = MemoryServer(Resources({}), lambda: START)
    clock = [0.0]
    sender = recorder(server, clock)
    for _ in range(3):
        run(sender.send(PARENT, Event("Warning", "StoreAway", "no answer")))
    run(sender.send(PARENT, Event("Normal", "Ready", "all is well")))
    events = {body["reason"]: body for (r, _), body in server.objects.items() if r == EVENTS}
    assert events["StoreAway"]["count"] == 3
    assert events["StoreAway"]["involvedObject"]["uid"] == "u"
    assert events["Ready"]["count"] == 1


def test_a_series_ends_and_an_event_that_expired_is_sent_anew() -> None:
    server = MemoryServer(Resources({}), lambda: START)
    clock = [0.0]
    sender = recorder(server, clock)
    event = Event("Warning", "StoreAway", "no answer")
    run(sender.send(PARENT, event))
    clock[0] = 601.0
    run(sender.send(PARENT, event))
    assert len(server.objects) == 2
    server.objects.clear()
    run(sender.send(PARENT, event))
    assert [body["count"] for body in server.objects.values()] == [1]


def test_nobody_waits_for_events_and_too_many_are_dropped_and_counted() -> None:
    metrics = Metrics()
    server = MemoryServer(Resources({}), lambda: START)
    sender = Recorder(server, metrics, identity="a")
    for _ in range(1001):  # of one object: a quarter of all that may wait
        sender.record(PARENT, Event("Normal", "R", "m"))
    assert "kubebooth_events_dropped_total 1.0" in metrics.text().decode()
