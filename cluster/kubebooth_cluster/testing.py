"""Pytest fixtures that give other rooms a real API server and a real object store.

pyproject.toml loads this with `-p kubebooth_cluster.testing`, so every test has the
fixtures. It must not know any room's kinds.
"""

import json
import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kubebooth_cluster import binaries, processes
from kubebooth_cluster.api import Api, ApiError
from kubebooth_cluster.controlplane import ControlPlane, Options
from kubebooth_cluster.node.records import read_record
from kubebooth_cluster.nodeagent import NodeAgent
from kubebooth_cluster.weed import Weed

_T = TypeVar("_T")


@dataclass(frozen=True)
class RealApi:
    """A running API server: its control plane, its kubeconfig and requests as administrator."""

    control_plane: ControlPlane
    kubeconfig: Path

    @property
    def api(self) -> Api:
        """Blocking JSON requests as the administrator."""
        return self.control_plane.api()

    def client(self) -> Any:
        """A `kubernetes.client.ApiClient` as the administrator; close it, or use `with`."""
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    def kubectl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator."""
        return subprocess.run(
            [str(binaries.kubectl()), "--kubeconfig", str(self.kubeconfig), *words],
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def helm(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run helm as the administrator."""
        return subprocess.run(
            [str(binaries.helm()), "--kubeconfig", str(self.kubeconfig), *words],
            capture_output=True,
            text=True,
            check=check,
            timeout=300,
        )

    def apply_crds(self, paths: Iterable[Path]) -> None:
        """Apply the CRDs of files and folders and wait until each is established."""
        files = [file for path in paths for file in _manifests(path)]
        applied = self.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            *(word for file in files for word in ("-f", str(file))),
            "--output=name",
            check=False,
        )
        if applied.returncode != 0:
            raise AssertionError(applied.stderr)
        self.kubectl(
            "wait", "--for=condition=Established", "--timeout=60s", *applied.stdout.split()
        )

    def make_namespace(self, name: str) -> str:
        """Create a namespace with a unique end and wait for its default account."""
        unique = f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}-{uuid.uuid4().hex[:6]}"
        self.api.post("/api/v1/namespaces", {"metadata": {"name": unique}})
        account = f"/api/v1/namespaces/{unique}/serviceaccounts/default"
        eventually(lambda: found(self.api, account), what=f"the default account of {unique}")
        return unique


def _manifests(path: Path) -> list[Path]:
    return sorted(path.glob("*.y*ml")) if path.is_dir() else [path]


def found(api: Api, path: str) -> Any:
    """The object at `path`, or None when there is none."""
    try:
        return api.get(path)
    except ApiError as error:
        if error.code == 404:
            return None
        raise


def eventually(
    probe: Callable[[], _T], *, what: str, timeout_s: float = 60, pause_s: float = 0.1
) -> _T:
    """The first true answer of `probe`; AssertionError with the last answer after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            shown = json.dumps(answer, indent=1, default=str)
            raise AssertionError(f"after {timeout_s:g} s still no {what}; last seen: {shown}")
        time.sleep(pause_s)


def short_folder() -> Iterator[Path]:
    """A temporary folder with a short name, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="kbt-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[RealApi]:
    """A real control plane without nodes, one for the whole test session."""
    for folder in short_folder():
        plane = ControlPlane(folder / "cluster", options=Options(die_with_parent=True))
        try:
            plane.start()
            yield RealApi(plane, plane.kubeconfig)
        finally:
            plane.stop(grace_s=3)


@dataclass(frozen=True)
class RealCluster(RealApi):
    """A running API server with one node that runs pods."""

    agent: NodeAgent

    def pods(self, namespace: str) -> list[Any]:
        """The pods of a namespace."""
        return list(self.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"])

    def wait_pod(self, namespace: str, name: str, phase: str, *, timeout_s: float = 60) -> Any:
        """The pod once it is in that phase. Raises AssertionError."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"

        def probe() -> Any:
            pod = found(self.api, path)
            return pod if pod and (pod.get("status") or {}).get("phase") == phase else None

        try:
            return eventually(probe, what=f"pod {name} {phase}", timeout_s=timeout_s)
        except AssertionError as error:
            shown = json.dumps((found(self.api, path) or {}).get("status"), indent=1)
            raise AssertionError(f"{error}; status: {shown}") from None

    def kill_container(self, namespace: str, pod: str, container: str | None = None) -> None:
        """SIGKILL every process of a pod's container (its first one), as a crash would."""
        found_pod = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        name = container or found_pod["spec"]["containers"][0]["name"]
        node = self.control_plane.folder / "nodes" / found_pod["spec"]["nodeName"]
        folder = node / "pods" / found_pod["metadata"]["uid"] / "containers" / name
        record = read_record(folder / "record.json")
        if record is None or record.launched is None or record.exit is not None:
            raise AssertionError(f"container {name} of pod {pod} does not run")
        processes.kill(record.launched.child)

    def logs(self, namespace: str, name: str, *words: str) -> str:
        """What `kubectl logs` shows."""
        return self.kubectl("-n", namespace, "logs", name, *words).stdout


def running_cluster(folder: Path, **settings: Any) -> Iterator[RealCluster]:
    """A cluster in `folder` for the time of a test; its end leaves no process behind.

    `settings` are those of the node agent, such as `gpus` and `backoff_base_s`.
    """
    plane = ControlPlane(folder / "cluster", options=Options(die_with_parent=True))
    offered = {"gpus": 4, "cpus": 32, "memory_bytes": 64 << 30, "backoff_base_s": 1}
    agent = NodeAgent(plane, die_with_parent=True, **{**offered, **settings})
    try:
        plane.start()
        agent.start()
        yield RealCluster(plane, plane.kubeconfig, agent)
    finally:
        agent.stop()
        plane.stop(grace_s=3)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealCluster]:
    """A real cluster of one node with 4 GPUs that really runs pods, one for the session.

    Its crash back-off begins at 1 s instead of 10.
    """
    for folder in short_folder():
        yield from running_cluster(folder, pods_die_with_agent=True)


@pytest.fixture
def cluster_namespace(cluster: RealCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own in `cluster`, deleted (not awaited) afterwards."""
    name = cluster.make_namespace(request.node.name)
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def namespace(control_plane: RealApi, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, deleted (not awaited) afterwards."""
    name = control_plane.make_namespace(request.node.name)
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def weed_server() -> Iterator[Weed]:
    """A running SeaweedFS of the test's own with one bucket, `kubebooth`."""
    for folder in short_folder():
        server = Weed(folder, buckets=("kubebooth",))
        try:
            yield server.start()
        finally:
            server.stop()
