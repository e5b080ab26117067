"""At most one replica leads, and a dead leader's place is free after the lease's duration."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubebooth_operator.errors import Unavailable
from kubebooth_operator.fence import Fence
from kubebooth_operator.lease import LEASE, Elector, LeaseLost, unique
from kubebooth_operator.resources import CONFIG_MAPS, LEASES, Resources

from tests.unit.operator_core.simulator import START, MemoryServer


class World:
    """A server and a clock."""

    def __init__(self) -> None:
        self.server = MemoryServer(Resources({}), lambda: START)
        self.now = 0.0

    def elector(self, name: str, *, duration_s: float = 15.0) -> Elector:
        return Elector(
            self.server,
            namespace="operators",
            identity=name,
            duration_s=duration_s,
            clock=lambda: self.now,
        )

    def spec(self) -> Any:
        return self.server.objects[LEASES, ("operators", LEASE)]["spec"]


def attempt(elector: Elector) -> bool:
    return asyncio.run(elector._try())


def test_the_first_leads_and_the_second_waits() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    assert attempt(a)
    assert a.leads()
    assert not attempt(b)
    assert not b.leads()
    assert world.spec()["holderIdentity"] == "a"
    assert world.spec()["leaseDurationSeconds"] == 15


def test_a_renewed_lease_is_never_taken() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    attempt(a)
    for _ in range(30):
        world.now += 2
        assert attempt(a)
        assert not attempt(b)
    assert a.leads()


def test_a_dead_leaders_lease_is_taken_after_its_duration_and_not_before() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    attempt(a)
    attempt(b)
    world.now += 14.9
    assert not attempt(b)
    world.now += 0.2
    assert attempt(b)
    assert world.spec()["holderIdentity"] == "b"
    assert world.spec()["leaseTransitions"] == 2


def test_a_leader_doubts_itself_before_another_may_lead() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    attempt(a)
    attempt(b)
    world.now += 10.1
    assert not a.leads()
    assert not attempt(b)


def test_a_released_lease_is_taken_at_once() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    attempt(a)
    attempt(b)
    asyncio.run(a.release())
    assert not a.leads()
    assert attempt(b)


def test_of_two_that_ask_at_the_same_moment_one_wins() -> None:
    world = World()
    a, b = world.elector("a"), world.elector("b")
    attempt(a)
    asyncio.run(a.release())
    others = [b]

    def meanwhile() -> None:
        if others and world.server.requests % 2 == 0:
            lease = world.server.objects[LEASES, ("operators", LEASE)]
            changed = {**lease, "spec": {**lease["spec"], "holderIdentity": "c"}}
            others.pop()
            world.server._changed(LEASES, ("operators", LEASE), lease, changed)

    world.server.between = meanwhile
    assert not attempt(b)
    assert not b.leads()


def test_who_cannot_renew_in_time_ends() -> None:
    world = World()
    elector = world.elector("a", duration_s=0.3)
    attempt(elector)
    world.server.objects.clear()

    async def story() -> None:
        world.now += 1.0

        async def refuse(*_: Any, **__: Any) -> Any:
            raise Unavailable("away")

        world.server.get = refuse  # type: ignore[method-assign]
        await elector.keep()

    with pytest.raises(LeaseLost, match="not renewed"):
        asyncio.run(story())


def test_no_write_passes_the_fence_of_a_replica_that_does_not_lead() -> None:
    world = World()
    leads = [True]
    fence = Fence(world.server, lambda: leads[0])
    body = {"metadata": {"name": "a", "namespace": "default"}}
    asyncio.run(fence.create(CONFIG_MAPS, "default", body))
    leads[0] = False
    for write in (
        fence.create(CONFIG_MAPS, "default", body),
        fence.apply(CONFIG_MAPS, "default", "a", body, force=True),
        fence.merge(CONFIG_MAPS, "default", "a", {"data": {}}),
        fence.json_patch(CONFIG_MAPS, "default", "a", []),
        fence.delete(CONFIG_MAPS, "default", "a", uid=None, foreground=False),
    ):
        with pytest.raises(Unavailable, match="does not lead"):
            asyncio.run(write)
    assert len(world.server.writes) == 1
    assert asyncio.run(fence.get(CONFIG_MAPS, "default", "a"))["metadata"]["name"] == "a"


def test_only_a_name_that_others_may_have_too_gets_an_ending() -> None:
    assert unique("pod-1", default="operator") == "pod-1"
    assert unique("operator", default="operator") != unique("operator", default="operator")
