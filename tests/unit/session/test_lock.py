"""At most one train pod, also when Jobs vanish behind the operator's back or it sees old things."""

from __future__ import annotations

from typing import Any

from kubebooth_operator.jobs.names import STAGE_LABEL
from kubebooth_operator.resources import JOBS, PODS

from tests.unit.operator_core.simulator import MemoryServer
from tests.unit.session.booth import Booth


def _training() -> Booth:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    return booth


def _train_job(booth: Booth) -> dict[str, Any]:
    (job,) = [j for j in booth.jobs() if j["metadata"]["labels"][STAGE_LABEL] == "train"]
    return job


def _delete_in_the_background(booth: Booth) -> None:
    """What `kubectl delete job` does: the Job is gone while its pod still ends."""
    name = ("default", _train_job(booth)["metadata"]["name"])
    MemoryServer._delete(booth.simulator.server, JOBS, name)


def _work_without_resync(booth: Booth) -> None:
    booth.simulator.deliver()
    for _ in range(20):
        while booth.simulator.work():
            pass
        booth.simulator.advance(0.2)


def test_a_pod_that_outlives_its_job_is_waited_for() -> None:
    booth = _training()
    kubelet = booth.world._kubelet
    booth.world._kubelet = lambda server, pod: None  # type: ignore[method-assign]
    _delete_in_the_background(booth)
    booth.settle()
    assert booth.world.most_train_pods == 1
    assert booth.world.started == ["prepare", "train"]
    assert "waits until pod rex-train-" in booth.condition("Ready")["message"]
    assert booth.status["phase"] == "Stopping"
    booth.world._kubelet = kubelet  # type: ignore[method-assign]
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.most_train_pods == 1


def test_a_job_that_is_gone_unseen_does_not_hold_up_its_successor() -> None:
    booth = _training()
    old = _train_job(booth)["metadata"]["uid"]
    _delete_in_the_background(booth)
    booth.simulator.lose(1)
    for _ in range(3):
        booth.world(booth.simulator.server)
    booth.edit(training={"denoiser": {"steps": 50}})
    _work_without_resync(booth)
    assert _train_job(booth)["metadata"]["uid"] != old
    assert booth.condition("Ready")["reason"] == "Training"


def test_a_job_that_is_there_unseen_is_found_and_judged() -> None:
    booth = _training()
    booth.edit(training={"denoiser": {"steps": 50}})
    booth.settle()
    (pod,) = [p for p in booth.simulator.server.all("Pod") if p["status"]["phase"] == "Running"]
    for resource, body in ((JOBS, _train_job(booth)), (PODS, pod)):
        metadata = body["metadata"]
        booth.simulator.cache.drop(resource, ("default", metadata["name"]), uid=metadata["uid"])
    booth.simulator.cache._tombstones.clear()
    booth.edit(training={"denoiser": {"steps": 70}})
    _work_without_resync(booth)
    assert _train_job(booth)["metadata"].get("deletionTimestamp")
    booth.settle()
    assert booth.world.most_train_pods == 1


def test_a_namesake_that_is_created_anew_waits_for_the_old_ones_pod() -> None:
    booth = _training()
    kubelet = booth.world._kubelet
    booth.world._kubelet = lambda server, pod: None  # type: ignore[method-assign]
    old = booth.simulator.parent(booth.key)
    assert old is not None
    _delete_in_the_background(booth)
    booth.simulator.delete(booth.key)
    booth.simulator.create({k: old[k] for k in ("apiVersion", "kind", "spec")} | _named("rex"))
    booth.settle()
    assert booth.world.most_train_pods == 1
    booth.world._kubelet = kubelet  # type: ignore[method-assign]
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.most_train_pods == 1


def _named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}}
