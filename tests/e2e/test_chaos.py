"""Everything is killed with -9, again and again: sessions end Complete with the same digests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubebooth_cluster import processes
from kubebooth_cluster.node.launch import leftovers
from kubebooth_cluster.testing import RealCluster, running_cluster, short_folder

from tests.e2e.booth import SHAPES, Booth, small_spec

DISTURBED = ("first", "second", "third")
SEED = 20261


@pytest.fixture(scope="module")
def stage() -> Iterator[Booth]:
    """An installation of its own, since everything in it will be killed."""
    for folder in short_folder():
        for cluster in running_cluster(folder):
            booth = Booth(
                cluster,
                namespace=cluster.make_namespace("kubebooth"),
                sessions=cluster.make_namespace("artists"),
            )
            booth.install()
            booth.upload_model("shapes", SHAPES / "base")
            yield booth
            booth.close()


def test_killed_sessions_end_with_the_digests_of_an_undisturbed_one(stage: Booth) -> None:
    _start(stage, "undisturbed")
    stage.wait("undisturbed", "Complete")
    expected = _digests(stage, "undisturbed")

    for name in DISTURBED:
        _start(stage, name)
    monkey = Monkey(stage, random.Random(SEED))
    monkey.rampage(rounds=2)

    for name in DISTURBED:
        stage.wait(name, "Complete", timeout_s=500)
    assert {name: _digests(stage, name) for name in DISTURBED} == dict.fromkeys(
        DISTURBED, expected
    ), monkey.story
    assert monkey.killed_workers > 0, monkey.story


def _start(booth: Booth, name: str) -> None:
    booth.upload_pictures(name)
    spec = small_spec(denoiser={"steps": 60, "learningRate": 1e-4})
    booth.apply(name, spec)


def _digests(booth: Booth, name: str) -> dict[str, str]:
    status = booth.status(name)
    return {
        "run": status["run"]["digest"],
        "dataset": status["dataset"]["digest"],
        "artifact": status["artifacts"][0]["digest"],
    }


class Monkey:
    """Kills parts of a running installation by process id and remembers what it did."""

    def __init__(self, booth: Booth, chance: random.Random) -> None:
        assert isinstance(booth.cluster, RealCluster)
        self._booth = booth
        self._cluster: RealCluster = booth.cluster
        self._chance = chance
        self.story: list[str] = []
        self.killed_workers = 0

    def rampage(self, *, rounds: int) -> None:
        """In each round, every kind of victim once, in random order at random moments."""
        kinds: list[Callable[[], None]] = [
            self._operator,
            self._worker,
            self._store,
            self._worker,
            self._api_server,
            self._node_agent,
            self._everything,
            self._worker,
        ]
        for _ in range(rounds):
            self._chance.shuffle(kinds)
            for kill in kinds:
                time.sleep(self._chance.uniform(0.5, 6.0))
                kill()

    def _operator(self) -> None:
        self._kill_pods(self._booth.namespace, "operator")

    def _store(self) -> None:
        self._kill_pods(self._booth.namespace, "store")

    def _worker(self) -> None:
        self.killed_workers += self._kill_pods(self._booth.sessions, "worker", only_one=True)

    def _api_server(self) -> None:
        plane = self._cluster.control_plane
        plane.kill("kube-apiserver")
        self.story.append("killed kube-apiserver")
        time.sleep(self._chance.uniform(0.1, 3.0))
        plane.restart("kube-apiserver")

    def _node_agent(self) -> None:
        self._cluster.agent.kill()
        self.story.append("killed node agent")
        time.sleep(self._chance.uniform(0.1, 3.0))
        self._cluster.agent.start()

    def _everything(self) -> None:
        plane, agent = self._cluster.control_plane, self._cluster.agent
        agent.kill()
        for component in ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler"):
            plane.kill(component)
        for process in leftovers(agent.folder):
            processes.kill(process)
        self.story.append("killed the whole cluster")
        plane.start()
        agent.start()

    def _kill_pods(self, namespace: str, what: str, *, only_one: bool = False) -> int:
        pods = [pod for pod in self._cluster.pods(namespace) if _is_running(pod, what)]
        if only_one:
            pods = pods and [self._chance.choice(pods)]
        killed = 0
        for pod in pods:
            for process in leftovers(self._cluster.agent.folder / "pods" / pod["metadata"]["uid"]):
                processes.kill(process)
                killed += 1
            self.story.append(f"killed {pod['metadata']['name']}")
        return killed


def _is_running(pod: dict[str, Any], what: str) -> bool:
    if (pod.get("status") or {}).get("phase") != "Running":
        return False
    component = pod["metadata"].get("labels", {}).get("app.kubernetes.io/component", "")
    return what == "worker" or component == what
