"""The node and its cluster come through crashes of the agent, the API server and a node."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubebooth_cluster.controlplane import COMPONENTS, ControlPlane, Options
from kubebooth_cluster.node.launch import leftovers
from kubebooth_cluster.nodeagent import NodeAgent
from kubebooth_cluster.testing import (
    RealCluster,
    eventually,
    found,
    running_cluster,
    short_folder,
)

# Losing a node takes the cluster a minute: it begins before the other tests of this module.
pytestmark = pytest.mark.usefixtures("lost_node")

_COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture(scope="module")
def breakable() -> Iterator[RealCluster]:
    """A cluster of this module's own, whose pods outlive their agent."""
    for folder in short_folder():
        yield from running_cluster(folder, backoff_base_s=0.2)


@pytest.fixture
def space(breakable: RealCluster, request: pytest.FixtureRequest) -> str:
    return breakable.make_namespace(request.node.name)


def _create(cluster: RealCluster, namespace: str, name: str, script: str, **spec: Any) -> str:
    container = {"name": "main", "image": "busybox", "command": ["sh", "-c", script]}
    body = {
        "metadata": {"name": name},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, **spec},
    }
    cluster.api.post(f"/api/v1/namespaces/{namespace}/pods", body)
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _main(cluster: RealCluster, path: str) -> Any:
    return found(cluster.api, path)["status"]["containerStatuses"][0]


def _folder(cluster: RealCluster, pod: Any) -> Path:
    return cluster.agent.folder / "pods" / str(pod["metadata"]["uid"])


def test_a_new_agent_takes_over_running_pods_and_learns_how_others_ended(
    breakable: RealCluster, space: str
) -> None:
    _create(breakable, space, "counts", _COUNT)
    stay = breakable.wait_pod(space, "counts", "Running")
    marks = "while ! test -e /scratch/go; do sleep 0.05; done; exit 65"
    container = {
        "name": "main",
        "image": "busybox",
        "command": ["sh", "-c", marks],
        "volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
    }
    body = {
        "metadata": {"name": "ends"},
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    }
    breakable.api.post(f"/api/v1/namespaces/{space}/pods", body)
    ends = breakable.wait_pod(space, "ends", "Running")

    breakable.agent.kill()
    (_folder(breakable, ends) / "volumes" / "work" / "go").touch()
    eventually(lambda: not leftovers(_folder(breakable, ends)), what="the end without an agent")
    breakable.agent.start()

    ended = breakable.wait_pod(space, "ends", "Failed")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 65
    kept = found(breakable.api, f"/api/v1/namespaces/{space}/pods/counts")
    assert kept["status"]["podIP"] == stay["status"]["podIP"]
    now, before = (pod["status"]["containerStatuses"][0] for pod in (kept, stay))
    assert [now[key] for key in ("containerID", "restartCount", "state")] == [
        before[key] for key in ("containerID", "restartCount", "state")
    ]
    lines = breakable.logs(space, "counts").split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    breakable.api.delete(f"/api/v1/namespaces/{space}/pods/counts")
    eventually(lambda: not leftovers(_folder(breakable, stay)), what="the end of the adopted pod")


def test_a_pod_killed_together_with_its_agent_counts_as_killed_and_restarts(
    breakable: RealCluster, space: str
) -> None:
    path = _create(breakable, space, "both", _COUNT)
    pod = breakable.wait_pod(space, "both", "Running")

    breakable.agent.kill()
    breakable.agent.stop()
    assert leftovers(_folder(breakable, pod)) == []
    breakable.agent.start()

    eventually(lambda: _main(breakable, path)["restartCount"] == 1, what="a restart")
    last = _main(breakable, path)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (137, "Error")


def test_a_process_that_an_agent_did_not_live_to_note_is_ended_by_the_next(
    breakable: RealCluster, space: str
) -> None:
    path = _create(breakable, space, "noted", _COUNT)
    pod = breakable.wait_pod(space, "noted", "Running")
    before = leftovers(_folder(breakable, pod))

    breakable.agent.kill()
    (_folder(breakable, pod) / "containers" / "main" / "record.json").unlink()
    breakable.agent.start()

    def replaced() -> bool:
        running = leftovers(_folder(breakable, pod))
        return len(running) == 1 and running != before

    eventually(replaced, what="one process, and not the old one")
    assert _main(breakable, path)["restartCount"] == 0


def test_a_killed_container_is_restarted(breakable: RealCluster, space: str) -> None:
    path = _create(breakable, space, "crashes", _COUNT)
    breakable.wait_pod(space, "crashes", "Running")

    breakable.kill_container(space, "crashes")

    eventually(lambda: _main(breakable, path)["restartCount"] == 1, what="a restart")
    assert _main(breakable, path)["lastState"]["terminated"]["exitCode"] == 137


def test_a_pod_deleted_while_the_agent_is_away_is_gone_when_it_is_back(
    breakable: RealCluster, space: str
) -> None:
    path = _create(breakable, space, "gone", _COUNT)
    pod = breakable.wait_pod(space, "gone", "Running")

    breakable.agent.kill()
    breakable.api.delete(path, {"gracePeriodSeconds": 0})
    assert leftovers(_folder(breakable, pod))
    breakable.agent.start()

    eventually(lambda: not leftovers(_folder(breakable, pod)), what="the end of its process")
    eventually(lambda: not _folder(breakable, pod).exists(), what="the removal of its folder")


def test_what_happens_while_the_api_server_is_dead_is_told_when_it_is_back(
    breakable: RealCluster, space: str
) -> None:
    plane = breakable.control_plane
    _create(breakable, space, "slow", "sleep 1.5; exit 3", restartPolicy="Never")
    pod = breakable.wait_pod(space, "slow", "Running")

    plane.kill("kube-apiserver")
    eventually(lambda: not leftovers(_folder(breakable, pod)), what="the end of the process")
    plane.restart("kube-apiserver")

    ended = breakable.wait_pod(space, "slow", "Failed")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    _create(breakable, space, "after", "exit 0", restartPolicy="Never")
    breakable.wait_pod(space, "after", "Succeeded")


def test_a_whole_cluster_killed_at_once_goes_on_where_it_was(
    breakable: RealCluster, space: str
) -> None:
    plane = breakable.control_plane
    path = _create(breakable, space, "counts", _COUNT)
    breakable.wait_pod(space, "counts", "Running")

    breakable.agent.kill()
    for component in COMPONENTS:
        plane.kill(component)
    breakable.agent.stop()
    plane.start()
    breakable.agent.start()

    eventually(lambda: _main(breakable, path)["restartCount"] == 1, what="a restart")
    breakable.wait_pod(space, "counts", "Running")


@dataclass(frozen=True)
class LostNode:
    """Two nodes, of which the one that ran a Job's pod died and was deleted."""

    cluster: RealCluster
    dead: NodeAgent
    folder: Path
    job: str


@pytest.fixture(scope="module")
def lost_node() -> Iterator[LostNode]:
    for folder in short_folder():
        plane = ControlPlane(folder / "cluster", options=Options(die_with_parent=True))
        agents = [
            NodeAgent(plane, name=name, die_with_parent=True, cpus=8) for name in ("one", "two")
        ]
        try:
            plane.start()
            for agent in agents:
                agent.start()
            yield _lose_a_node(RealCluster(plane, plane.kubeconfig, agents[0]), agents)
        finally:
            for agent in agents:
                agent.stop()
            plane.stop(grace_s=3)


def _lose_a_node(cluster: RealCluster, agents: list[NodeAgent]) -> LostNode:
    rule = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    container = {"name": "main", "image": "busybox", "command": ["sh", "-c", _COUNT]}
    spec = {
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [rule]},
        "template": {"spec": {"containers": [container], "restartPolicy": "Never"}},
    }
    where = "/apis/batch/v1/namespaces/default/jobs"
    cluster.api.post(where, {"metadata": {"name": "moves"}, "spec": spec})
    pod = eventually(lambda: _running(cluster), what="a running pod")
    dead = next(agent for agent in agents if agent.name == pod["spec"]["nodeName"])
    folder = dead.folder / "pods" / pod["metadata"]["uid"]
    assert leftovers(folder)
    dead.kill()
    cluster.api.delete(f"/api/v1/nodes/{dead.name}")
    return LostNode(cluster, dead, folder, f"{where}/moves")


def _running(cluster: RealCluster) -> Any:
    pods = [one for one in cluster.pods("default") if "deletionTimestamp" not in one["metadata"]]
    return next((one for one in pods if one["status"].get("phase") == "Running"), None)


def test_a_pod_of_a_deleted_node_is_a_disruption_and_its_job_goes_on_elsewhere(
    lost_node: LostNode,
) -> None:
    cluster, dead = lost_node.cluster, lost_node.dead

    def moved() -> Any:
        pod = _running(cluster)
        return pod if pod and pod["spec"]["nodeName"] != dead.name else None

    # The garbage collector of pods gives a lost node a minute.
    eventually(moved, what="a pod on the other node", timeout_s=120)
    job = found(cluster.api, lost_node.job)
    assert not [one for one in job["status"].get("conditions") or () if one["type"] == "Failed"]
    dead.start()
    eventually(lambda: not leftovers(lost_node.folder), what="the end of what the lost node ran")


def test_an_agent_killed_again_and_again_loses_no_pod_and_runs_none_twice(
    breakable: RealCluster, space: str
) -> None:
    script = "echo once >> /scratch/log; sleep 0.7; exit 0"
    for number in range(12):
        container = {
            "name": "main",
            "image": "busybox",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
        }
        spec = {
            "restartPolicy": "Never",
            "containers": [container],
            "initContainers": [{**container, "name": "first"}],
            "volumes": [{"name": "work", "emptyDir": {}}],
        }
        body = {"metadata": {"name": f"p{number}"}, "spec": spec}
        breakable.api.post(f"/api/v1/namespaces/{space}/pods", body)
    dice = random.Random(7)
    for _ in range(5):
        time.sleep(dice.uniform(0.05, 0.6))
        breakable.agent.kill()
        breakable.agent.start()

    for number in range(12):
        pod = breakable.wait_pod(space, f"p{number}", "Succeeded")
        log = _folder(breakable, pod) / "volumes" / "work" / "log"
        assert log.read_text() == "once\nonce\n"
        assert leftovers(_folder(breakable, pod)) == []
