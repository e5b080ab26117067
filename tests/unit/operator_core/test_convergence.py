"""Whatever happens to events, requests and the operator, what is asked becomes true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_operator.doors import Key

from tests.unit.operator_core.simulator import START, Crash, Faults, Simulator, run
from tests.unit.operator_core.tiny import KIND, KINDS, PLURAL, tiny

KEY = Key(PLURAL, "default", "one")


def assert_converged(sim: Simulator, value: int, *, jobs: bool) -> None:
    parent = sim.parent(KEY)
    assert parent is not None
    assert parent["status"] == {
        "observedGeneration": parent["metadata"]["generation"],
        "phase": "Ready",
        "message": f"value {value}",
    }
    config_map = sim.server.find("ConfigMap", "default", "one")
    assert config_map is not None
    assert config_map["data"] == {"value": str(value)}
    names = [job["metadata"]["name"] for job in sim.server.all("Job")]
    assert names == ([f"one-{value}"] if jobs else [])


def test_a_new_object_gets_its_children_and_status() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=3, jobs=True))
    sim.settle()
    assert_converged(sim, 3, jobs=True)


def test_twice_the_same_changes_nothing() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=3, jobs=True))
    sim.settle()
    assert sim.quiet()
    sim.crash()
    assert sim.quiet()


Action = tuple[str, int]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["value", "jobs", "deliver", "lose", "replay"]), st.integers(0, 6)
        ),
        st.tuples(st.sampled_from(["crash_before", "crash_after"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["refuse", "lose_answer"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["work", "advance", "meddle", "unlabel"]), st.integers(0, 6)),
        st.tuples(st.sampled_from(["resync", "kill", "recreate"]), st.just(0)),
    ),
    max_size=40,
)


class Story:
    """Carries out random actions and remembers what is asked in the end."""

    def __init__(self, sim: Simulator, between: list[Action]) -> None:
        self.sim = sim
        self.value = 0
        self.jobs = False
        self._between = list(between)
        sim.create(tiny(value=0, jobs=False))
        sim.server.between = self._meanwhile

    def act(self, action: Action) -> None:
        what, number = action
        sim = self.sim
        simple: dict[str, Any] = {
            "deliver": lambda: sim.deliver(number),
            "lose": lambda: sim.lose(number),
            "replay": lambda: sim.replay(number),
            "advance": lambda: sim.advance(float(number)),
            "resync": sim.resync,
            "kill": sim.crash,
        }
        if what in simple:
            simple[what]()
        elif what == "work":
            for _ in range(number):
                sim.work()
        elif what in {"crash_before", "crash_after", "refuse", "lose_answer"}:
            sim.server.faults = Faults(**{what: number})
        else:
            self.user(action)

    def user(self, action: Action) -> None:
        """What users do, also in the middle of a reconcile."""
        what, number = action
        server = self.sim.server
        if what == "value":
            self.value = number
            self.sim.edit_spec(KEY, value=number)
        elif what == "jobs":
            self.jobs = number % 2 == 0
            self.sim.edit_spec(KEY, jobs=self.jobs)
        elif what == "meddle" and server.find("ConfigMap", "default", "one"):
            server.edit(
                "ConfigMap", "default", "one", lambda body: body.update(data={"value": "x"})
            )
        elif what == "unlabel" and server.find("ConfigMap", "default", "one"):
            server.edit(
                "ConfigMap", "default", "one", lambda body: body["metadata"].pop("labels", 0)
            )
        elif what == "recreate":
            self.sim.delete(KEY)
            self.sim.create(tiny(value=self.value, jobs=self.jobs))

    def _meanwhile(self) -> None:
        if self._between:
            self.user(self._between.pop(0))


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS, between=ACTIONS, seed=st.integers(0, 1000))
def test_random_histories_converge(actions: list[Action], between: list[Action], seed: int) -> None:
    sim = Simulator(KINDS, seed=seed)
    story = Story(sim, between)
    for action in actions:
        try:
            story.act(action)
        except Crash:
            sim.crash()
    sim.server.faults = Faults()
    sim.server.between = lambda: None
    sim.settle()
    assert_converged(sim, story.value, jobs=story.jobs)
    assert sim.quiet()


@pytest.mark.parametrize("fault", ["crash_before", "crash_after", "refuse", "lose_answer"])
@pytest.mark.parametrize("at", range(6))
def test_every_crash_point_of_a_whole_life_is_survived(fault: str, at: int) -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1, jobs=True, purge=True))
    sim.server.faults = Faults(**{fault: at})
    sim.settle()
    sim.server.faults = Faults(**{fault: at})
    sim.edit_spec(KEY, value=2)
    sim.settle()
    assert_converged(sim, 2, jobs=True)
    sim.server.faults = Faults(**{fault: at})
    sim.delete(KEY)
    sim.settle()
    assert sim.parent(KEY) is None
    assert sim.server.objects == {}
    assert run(sim.reconciler.reconcile(KEY)).result == "gone"


def test_a_deleted_object_whose_event_was_lost_is_a_ghost_until_the_next_full_list() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1))
    sim.settle()
    sim.delete(KEY)
    sim.lose(sim.undelivered)
    assert sim.cache.count(sim.resources.custom[0]) == 1
    sim.resync()
    assert sim.cache.count(sim.resources.custom[0]) == 0


def test_a_foreign_child_of_the_same_name_is_never_touched_and_is_told() -> None:
    sim = Simulator(KINDS)
    foreign = {"metadata": {"name": "one", "namespace": "default"}, "data": {"mine": "yes"}}
    before = sim.server.put("ConfigMap", foreign)
    sim.create(tiny(value=1))
    sim.settle(horizon_s=200)
    assert sim.server.find("ConfigMap", "default", "one") == before
    parent = sim.parent(KEY)
    assert parent is not None
    conditions = {c["type"]: c for c in parent["status"]["conditions"]}
    assert conditions["Stalled"]["status"] == "True"
    assert conditions["Stalled"]["reason"] == "NameConflict"
    assert "'one'" in conditions["Stalled"]["message"]
    assert sim.quiet()


def test_a_stalled_object_goes_on_when_the_foreign_child_is_gone() -> None:
    sim = Simulator(KINDS)
    sim.server.put("ConfigMap", {"metadata": {"name": "one", "namespace": "default"}, "data": {}})
    sim.create(tiny(value=1))
    sim.settle(horizon_s=100)
    sim.server.remove("ConfigMap", "default", "one")
    sim.advance(60)
    sim.settle()
    assert_converged(sim, 1, jobs=False)


def test_an_edit_of_an_immutable_field_is_not_tried_for_ever() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1, jobs=True))
    sim.settle()

    def other_image(body: dict[str, Any]) -> None:
        body["spec"]["template"]["spec"]["containers"][0]["image"] = "worker:0"

    sim.server.edit("Job", "default", "one-1", other_image)
    sim.settle()
    assert sim.quiet()
    assert any("kept Job/one-1" in outcome.writes for _, outcome in sim.outcomes)


def test_events_are_told_only_with_a_status_that_was_written() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1))
    sim.settle()
    told = len(sim.told.events)
    assert told > 0
    assert sim.quiet()
    assert len(sim.told.events) == told


def test_others_finalizers_are_left_alone() -> None:
    sim = Simulator(KINDS)
    body = tiny(value=1, purge=True)
    body["metadata"]["finalizers"] = ["example.com/other"]
    sim.create(body)
    sim.settle()
    parent = sim.parent(KEY)
    assert parent is not None
    assert parent["metadata"]["finalizers"] == ["example.com/other", "kubebooth.io/purge"]
    sim.edit_spec(KEY, purge=False)
    sim.settle()
    parent = sim.parent(KEY)
    assert parent is not None
    assert parent["metadata"]["finalizers"] == ["example.com/other"]
    assert parent["kind"] == KIND


def test_what_a_reconcile_did_to_children_is_looked_at_without_waiting() -> None:
    sim = Simulator(KINDS)
    sim.create(tiny(value=1, jobs=True))
    sim.deliver()
    while sim.work():
        pass
    assert sim.now == START
    assert_converged(sim, 1, jobs=True)
