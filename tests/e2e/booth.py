"""Kubebooth installed on a cluster, driven as a user would: helm, kubectl, the store."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_cli.cluster import Where, connect
from kubebooth_cli.locating import Flags
from kubebooth_cli.opening import opened
from kubebooth_cluster import binaries
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.testing import RealApi, eventually, found
from kubebooth_store import Store, publish

from tests.chart.helm import take_over
from tests.e2e.given import HELM_SET, GivenCluster

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "examples/shapes"
RELEASE = "kubebooth"
SESSIONS = "/apis/kubebooth.io/v1alpha1/namespaces/{}/dreamboothsessions"


class Booth:
    """One installation: the cluster, the release's namespace and the namespace of sessions."""

    def __init__(self, cluster: RealApi | GivenCluster, *, namespace: str, sessions: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.sessions = sessions
        # Pods share the loopback address, so two installations need ports of their own.
        self._ports = free_ports(5)
        self._open = contextlib.ExitStack()
        self._store: Store | None = None

    def install(self, *values: str) -> None:
        """`helm upgrade --install --wait`."""
        words = [str(binaries.helm()), "upgrade", "--install", RELEASE]
        words += [str(ROOT / "charts/kubebooth"), "--namespace", self.namespace]
        words += ["--kubeconfig", str(self.cluster.kubeconfig), "--wait", "--timeout", "3m"]
        # An earlier release has left its CRDs, as the chart promises: this one owns them now.
        words += take_over()
        ports = zip(("s3", "master", "volume", "filer", "admin"), self._ports, strict=True)
        settings = [f"sessionNamespaces={{{self.sessions}}}", *values]
        settings += [f"store.bundled.ports.{name}={port}" for name, port in ports]
        settings += HELM_SET
        for value in settings:
            words += ["--set", value]
        installed = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
        if installed.returncode != 0:
            raise AssertionError(f"{installed.stderr}\n{self.pods()}")

    def store(self) -> Store:
        """The store of the installation, found and reached as the command line does it."""
        if self._store is None:
            where = Where(namespace=self.sessions, kubeconfig=self.cluster.kubeconfig)
            self._store = self._open.enter_context(opened(connect(where), None, Flags(), where))
        return self._store

    def uninstall(self) -> None:
        """Remove the release and both namespaces."""
        words = [str(binaries.helm()), "--kubeconfig", str(self.cluster.kubeconfig)]
        words += ["uninstall", RELEASE, "--namespace", self.namespace, "--wait"]
        subprocess.run(words, capture_output=True, check=True, timeout=240)
        self.cluster.kubectl("delete", "namespace", self.sessions, self.namespace)

    def close(self) -> None:
        """Let go of the store."""
        self._open.close()

    def upload_model(self, name: str, folder: Path) -> None:
        """Publish a Diffusers folder as `models/<name>`."""
        publish(self.store(), layout.model(name), folder, kind="model")

    def upload_pictures(self, session: str, folder: Path = SHAPES / "subject") -> None:
        """Copy every file of a folder to the session's uploads."""
        store = self.store()
        prefix = layout.uploads(self.sessions, session)
        for file in sorted(folder.iterdir()):
            store.upload(file, f"{prefix}/{file.name}")

    def apply(self, name: str, spec: dict[str, Any]) -> None:
        """Server-side apply of a session, as `kubectl apply --server-side` does it."""
        self.cluster.api.apply(
            f"{SESSIONS.format(self.sessions)}/{name}",
            {
                "apiVersion": "kubebooth.io/v1alpha1",
                "kind": "DreamboothSession",
                "metadata": {"name": name, "namespace": self.sessions},
                "spec": spec,
            },
        )

    def patch(self, name: str, change: dict[str, Any]) -> None:
        """Merge patch of a session."""
        self.kubectl("patch", "dbs", name, "--type", "merge", "--patch", json.dumps(change))

    def session(self, name: str) -> Any:
        """The session as it is, or None."""
        return found(self.cluster.api, f"{SESSIONS.format(self.sessions)}/{name}")

    def status(self, name: str) -> dict[str, Any]:
        """The session's status."""
        session = self.session(name)
        return (session or {}).get("status") or {}

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One condition of the session; empty when it has none of that type."""
        conditions = self.status(name).get("conditions") or []
        return next((c for c in conditions if c["type"] == kind), {})

    def wait(
        self, name: str, kind: str, *, status: str = "True", timeout_s: float = 240
    ) -> dict[str, Any]:
        """Wait until a condition has a status; a Failed session ends the wait at once."""

        def settled() -> dict[str, Any] | None:
            failed = self.condition(name, "Failed")
            if kind != "Failed" and failed.get("status") == "True":
                raise AssertionError(f"{name} failed: {json.dumps(self.status(name), indent=1)}")
            condition = self.condition(name, kind)
            return condition if condition.get("status") == status else None

        try:
            return eventually(settled, what=f"{kind}={status} of {name}", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{json.dumps(self.status(name), indent=1)}\n{self.pods()}"
            ) from error

    def wait_for(
        self, name: str, what: str, test: Callable[[dict[str, Any]], bool], timeout_s: float = 120
    ) -> dict[str, Any]:
        """Wait until the status passes a test; gives the status."""

        def passed() -> dict[str, Any] | None:
            status = self.status(name)
            return status if test(status) else None

        return eventually(passed, what=what, timeout_s=timeout_s, pause_s=0.05)

    def pods(self) -> str:
        """`kubectl get pods` of both namespaces, for failure messages."""
        return self.cluster.kubectl("get", "pods,jobs,dbs", "-A", "-o", "wide", check=False).stdout

    def worker_pods(self, name: str) -> list[dict[str, Any]]:
        """Pods of one session's workers, whatever their phase."""
        listed = self.cluster.api.get(f"/api/v1/namespaces/{self.sessions}/pods")["items"]
        return [
            pod
            for pod in listed
            if pod["metadata"].get("labels", {}).get("kubebooth.io/session") == name
        ]

    def kubectl(self, *words: str) -> str:
        """kubectl in the sessions' namespace; gives what it printed."""
        done = self.cluster.kubectl("--namespace", self.sessions, *words, check=False)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        return done.stdout

    def run_cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The `kubebooth` command as a user starts it."""
        return subprocess.run(
            [str(ROOT / ".venv/bin/kubebooth"), *words, "--namespace", self.sessions],
            env={
                "KUBECONFIG": str(self.cluster.kubeconfig),
                "PATH": "/usr/bin:/bin",
                "HOME": "/nonexistent",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


def small_spec(**training: Any) -> dict[str, Any]:
    """A session that trains in seconds on the shapes model; `training` is merged over it."""
    return {
        "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/shapes"}}},
        "concepts": [{"name": "subject", "token": "sks", "className": "square"}],
        "training": {
            "resolution": 128,
            "batchSize": 2,
            "seed": 7,
            "textEncoder": {"steps": 6, "learningRate": 1e-4},
            "denoiser": {"steps": 12, "learningRate": 1e-4},
            "priorPreservation": {
                "classPrompt": "a square",
                "numImages": 4,
                "inferenceSteps": 4,
            },
            **training,
        },
        "samples": {"everySteps": 0, "inferenceSteps": 4, "imagesPerPrompt": 1},
        "checkpoints": {"everySteps": 5},
        "retry": {"limit": 50, "backoffSeconds": 1},
        "runtime": {
            "resources": {"cpu": "500m", "memory": "3Gi", "gpu": 1, "scratch": "1Gi"},
            "terminationGracePeriodSeconds": 30,
        },
    }
