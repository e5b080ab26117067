"""Pods that cannot start: the condition names what is missing and the cure."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.session.booth import Booth


def _with_pod(status: dict[str, Any], *, stage: str = "train", **fields: Any) -> Booth:
    """A session whose pod of a stage has this status."""
    booth = Booth(**fields)
    booth.world.hold = lambda held: held == stage
    booth.settle()
    (pod,) = [
        pod
        for pod in booth.simulator.server.all("Pod")
        if pod["metadata"]["labels"]["kubebooth.io/stage"] == stage
    ]
    booth.world._kubelet = lambda server, pod: None  # type: ignore[method-assign]
    booth.simulator.server.set_status("Pod", "default", pod["metadata"]["name"], status)
    booth.settle()
    return booth


def _waiting(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": state}]}


def test_a_missing_secret_is_named_with_its_keys_and_namespace() -> None:
    booth = _with_pod(
        _waiting("CreateContainerConfigError", 'secret "my-keys" not found'),
        stage="prepare",
        storage={"credentialsSecretRef": {"name": "my-keys"}},
    )
    told = [c for c in booth.status["conditions"] if "my-keys" in c["message"]]
    assert {c["reason"] for c in told} == {"CredentialsMissing"}
    assert {c["type"] for c in told} == {"Ready", "Reconciling"}
    assert "accessKey and secretKey in namespace default" in told[0]["message"]
    assert booth.status["phase"] == "Waiting"
    assert booth.holds("Reconciling")


def test_a_pod_without_a_node_tells_what_the_scheduler_says() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    }
    booth = _with_pod({"phase": "Pending", "conditions": [condition]})
    quota = booth.condition("QuotaReserved")
    assert quota["status"] == "False"
    assert quota["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in quota["message"]
    assert booth.condition("Ready")["reason"] == "Unschedulable"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_has_one_reason(reason: str) -> None:
    booth = _with_pod(_waiting(reason, "no such image"))
    assert booth.condition("Ready")["reason"] == "ImagePullBackOff"
    assert "spec.runtime.image" in booth.condition("Ready")["message"]


def test_any_other_wait_is_told_as_it_is() -> None:
    booth = _with_pod(_waiting("CreateContainerError", "device busy"))
    assert booth.condition("Ready")["reason"] == "CreateContainerError"
    assert "device busy" in booth.condition("Ready")["message"]


def test_a_reason_that_is_no_word_does_not_spoil_the_status() -> None:
    booth = _with_pod(_waiting("7 bad: reasons!", "x" * 5000))
    assert booth.condition("Ready")["reason"] == "Unknown"
    assert len(booth.condition("Ready")["message"]) <= 1024


def test_an_ordinary_start_is_no_trouble() -> None:
    booth = _with_pod(_waiting("ContainerCreating", ""))
    assert booth.condition("Ready")["reason"] == "Training"


def test_a_job_in_a_queue_waits_for_its_admission() -> None:
    booth = Booth(runtime={"queueName": "team-a"})
    booth.world.hold = lambda stage: True
    while not booth.jobs():
        booth.simulator.deliver()
        booth.simulator.work()
    (job,) = booth.jobs()
    server = booth.simulator.server
    name = job["metadata"]["name"]
    server.edit("Job", "default", name, lambda body: body["spec"].update(suspend=True))
    booth.settle()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "suspend" not in job["spec"]
    assert booth.condition("Ready")["reason"] == "QueuePending"
    assert "team-a" in booth.condition("Ready")["message"]
    assert booth.world.started == []
    server.edit("Job", "default", name, lambda body: body["spec"].update(suspend=False))
    booth.settle()
    assert booth.world.started == ["prepare"]


def test_a_running_train_pod_has_its_place() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    assert booth.holds("QuotaReserved")
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.condition("QuotaReserved")["reason"] == "Released"
