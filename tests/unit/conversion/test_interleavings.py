"""Whatever happens in whatever order, a conversion ends where its spec says."""

from __future__ import annotations

import random

import pytest
from kubebooth_operator.resources import CHILDREN

from tests.unit.conversion.desk import Desk, hub
from tests.unit.operator_core.simulator import Faults
from tests.unit.session.booth import session
from tests.unit.session.world import KILLED, chance

ACTIONS = 70


class Chaos:
    """Random users, workers, streams and crashes around one conversion of one session's model."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        source = self.rng.choice(
            ({"session": {"name": "rex"}}, hub(), {"store": {"key": "models/shapes"}})
        )
        self.desk = Desk(seed=seed, source=source, overwrite=True)
        self.rex = self.desk.simulator.create(session("rex"))
        world = self.desk.world
        world.hold = lambda stage: self.rng.random() < 0.5
        world.next_exit = lambda stage: chance(
            self.rng, (0, 6), (65, 1), (67, 2), (68, 2), (70, 1), (KILLED, 1)
        )

    def act(self) -> None:
        """One random thing."""
        simulator = self.desk.simulator
        self.rng.choices(
            (
                lambda: simulator.deliver(self.rng.randint(1, 4)),
                lambda: simulator.work() or None,
                lambda: self.desk.world(simulator.server),
                lambda: simulator.advance(self.rng.choice((1, 7, 40, 700))),
                self.user,
                simulator.crash,
                lambda: simulator.lose(self.rng.randint(1, 3)),
                lambda: simulator.replay(self.rng.randrange(1000)),
                simulator.resync,
                self.break_a_write,
            ),
            (30, 30, 25, 8, 6, 2, 3, 4, 2, 4),
        )[0]()

    def user(self) -> None:
        """An edit of a spec, or a retry."""
        rng, desk = self.rng, self.desk
        if not desk.there:
            return
        steps = {"denoiser": {"steps": rng.choice((20, 30))}}
        rng.choice(
            (
                lambda: desk.edit(suspend=rng.random() < 0.5),
                lambda: desk.edit(target={"format": rng.choice(("Ckpt", "Safetensors"))}),
                lambda: desk.edit(dryRun=rng.random() < 0.3),
                lambda: desk.edit(ttlSecondsAfterFinished=rng.choice((0, 30))),
                lambda: desk.simulator.edit_spec(self.rex, training=steps),
                lambda: desk.retry(str(rng.randint(0, 999))),
            )
        )()

    def break_a_write(self) -> None:
        """The operator dies around one of its next writes, or the write fails."""
        fault = self.rng.choice(("crash_before", "crash_after", "refuse", "lose_answer"))
        self.desk.simulator.server.faults = Faults(**{fault: self.rng.randint(0, 3)})

    def calm(self) -> None:
        """No more faults; workers succeed; nobody fails for good."""
        self.desk.simulator.server.faults = Faults()
        self.desk.world.hold = lambda stage: False
        self.desk.world.next_exit = lambda stage: 0


@pytest.mark.parametrize("seed", range(30))
def test_a_conversion_ends_complete_whatever_happened_before(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(ACTIONS):
        chaos.act()
    chaos.calm()
    desk = chaos.desk
    desk.edit(suspend=False, dryRun=False)
    desk.retry("at last")
    desk.simulator.edit_spec(chaos.rex, rerun="fresh")
    desk.settle()
    parent = desk.simulator.parent(desk.key)
    assert parent is not None
    assert desk.holds("Complete"), desk.status["message"]
    assert desk.status["artifact"]["format"] == parent["spec"]["target"]["format"]
    assert desk.status["artifact"]["digest"]
    if "session" in parent["spec"]["source"]:
        rex = desk.simulator.parent(chaos.rex)
        assert rex is not None
        assert desk.status["sourceDigest"] == rex["status"]["artifacts"][0]["digest"]
    assert all(attempt["outcome"] != "Running" for attempt in desk.status["attempts"])


@pytest.mark.parametrize("seed", range(12))
def test_deletion_ends_whatever_happened_before(seed: int) -> None:
    chaos = Chaos(seed + 500)
    chaos.desk.edit(deletionPolicy="Delete")
    for _ in range(ACTIONS // 2):
        chaos.act()
    desk = chaos.desk
    asked = desk.simulator.parent(desk.key)
    assert asked is not None
    desk.simulator.delete(desk.key)
    chaos.calm()
    if desk.there:
        desk.retry("at last")
    desk.simulator.settle()
    assert not desk.there
    uid = asked["metadata"]["uid"]
    left = [
        body
        for (resource, _), body in desk.simulator.server.objects.items()
        if resource in CHILDREN
        and any(o["uid"] == uid for o in body["metadata"].get("ownerReferences", ()))
    ]
    assert left == []
    if asked["metadata"].get("finalizers"):
        assert desk.world.purged == 1
