"""Deletion: what is kept, what is purged, and how to let go when a purge cannot be."""

from __future__ import annotations

from typing import Any

from kubebooth_api.exitcodes import ExitCode
from kubebooth_operator.resources import FINALIZER

from tests.unit.session.booth import Booth


def _finalizers(booth: Booth) -> list[str]:
    parent = booth.simulator.parent(booth.key)
    assert parent is not None
    finalizers: list[str] = parent["metadata"].get("finalizers") or []
    return finalizers


def _add_finalizer(booth: Booth, name: str) -> None:
    def change(body: dict[str, Any]) -> None:
        body["metadata"].setdefault("finalizers", []).append(name)

    booth.simulator.server.edit("DreamboothSession", "default", "rex", change)


def _drop_finalizer(booth: Booth, name: str) -> None:
    booth.simulator.server.edit(
        "DreamboothSession",
        "default",
        "rex",
        lambda body: body["metadata"]["finalizers"].remove(name),
    )


def test_a_retained_session_has_no_finalizer_and_goes_at_once() -> None:
    booth = Booth()
    booth.settle()
    assert _finalizers(booth) == []
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert not booth.there
    assert booth.jobs() == []
    assert booth.world.purged == 0


def test_the_finalizer_is_there_before_anything_is_written_to_the_store() -> None:
    booth = Booth(deletionPolicy="Delete")
    while not booth.jobs():
        booth.simulator.deliver()
        if not booth.simulator.work():
            booth.simulator.advance(1)
        assert not booth.jobs() or _finalizers(booth) == [FINALIZER]
    assert _finalizers(booth) == [FINALIZER]


def test_a_session_to_be_purged_stops_first_and_goes_after_the_purge() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert not booth.there
    assert booth.world.started == ["prepare", "train", "purge"]
    assert booth.world.purged == 1
    assert booth.jobs() == []


def test_the_purge_waits_for_the_last_pod() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    kubelet = booth.world._kubelet
    booth.world._kubelet = lambda server, pod: None  # type: ignore[method-assign]
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert booth.there
    assert booth.world.started == ["prepare", "train"]
    assert booth.status["phase"] == "Stopping"
    booth.world._kubelet = kubelet  # type: ignore[method-assign]
    booth.simulator.settle()
    assert not booth.there
    assert booth.world.started[-1] == "purge"


def test_a_purge_that_fails_is_tried_again_and_then_names_the_way_out() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.settle()
    booth.world.next_exit = lambda stage: ExitCode.STORAGE_ERROR
    booth.simulator.delete(booth.key)
    booth.settle()
    assert booth.there
    assert booth.world.started.count("purge") == 4
    assert "spec.deletionPolicy to Retain" in booth.condition("Stalled")["message"]
    booth.edit(deletionPolicy="Retain")
    booth.simulator.settle()
    assert not booth.there


def test_a_failed_purge_is_tried_again_when_asked() -> None:
    booth = Booth(deletionPolicy="Delete", retry={"limit": 0})
    booth.settle()
    booth.world.next_exit = lambda stage: ExitCode.STORAGE_ERROR
    booth.simulator.delete(booth.key)
    booth.settle()
    booth.world.next_exit = lambda stage: 0
    booth.retry("1")
    booth.simulator.settle()
    assert not booth.there
    assert booth.world.purged == 1


def test_a_policy_that_turns_to_retain_drops_the_finalizer() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.settle()
    booth.edit(deletionPolicy="Retain")
    booth.settle()
    assert _finalizers(booth) == []


def test_the_purge_waits_while_kubernetes_deletes_in_the_foreground() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.settle()
    _add_finalizer(booth, "foregroundDeletion")
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert booth.world.purged == 0
    assert "the purge follows" in booth.condition("Ready")["message"]
    _drop_finalizer(booth, "foregroundDeletion")
    booth.simulator.settle()
    assert not booth.there
    assert booth.world.purged == 1


def test_a_spec_that_cannot_be_read_blocks_the_purge_and_says_how_to_go_on() -> None:
    booth = Booth(deletionPolicy="Delete")
    booth.settle()
    booth.edit(training={"denoiser": {"steps": -1}})
    booth.simulator.delete(booth.key)
    booth.settle()
    message = booth.condition("Stalled")["message"]
    assert "spec.training.denoiser.steps" in message
    assert "spec.deletionPolicy to Retain" in message
    booth.edit(deletionPolicy="Retain")
    booth.simulator.settle()
    assert not booth.there


def test_a_suspended_session_is_purged_all_the_same() -> None:
    booth = Booth(deletionPolicy="Delete", suspend=True)
    booth.settle()
    booth.simulator.delete(booth.key)
    booth.simulator.settle()
    assert not booth.there
    assert booth.world.started == ["purge"]
