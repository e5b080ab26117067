"""The operator works with the rights that the chart gives it, and asks for no others."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubebooth_cluster import kubeconfig, processes
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.testing import eventually

from tests.chart.helm import ROOT, environment, pod_of
from tests.chart.release import Release

SESSIONS = "/apis/kubebooth.io/v1alpha1/namespaces/{}/dreamboothsessions"


@contextmanager
def _operator(release: Release, folder: Path, port: int) -> Iterator[Path]:
    """The operator as a process, with the account and environment of its Deployment; its log."""
    api, name = release.plane.api, f"{release.name}-kubebooth-operator"
    account = f"/api/v1/namespaces/{release.namespace}/serviceaccounts/{name}/token"
    token = api.post(account, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    admin = kubeconfig.read(release.plane.kubeconfig)
    own = folder / "kubeconfig"
    credentials = kubeconfig.Credentials(admin.server, admin.authority_pem, token)
    kubeconfig.write(own, credentials, name="test", user="operator")
    where = f"/apis/apps/v1/namespaces/{release.namespace}/deployments/{name}"
    container = pod_of(api.get(where))["containers"][0]
    log = folder / "operator.log"
    process = processes.start(
        [Path(sys.prefix) / "bin" / container["command"][0]],
        log=log,
        env={
            **environment(container),
            "KUBECONFIG": str(own),
            "POD_NAMESPACE": release.namespace,
            "POD_NAME": "operator",
            "POD_IP": "127.0.0.1",
            "KUBEBOOTH_PORT": str(port),
            "PATH": os.defpath,
            "HOME": str(folder),
        },
        die_with_parent=True,
    )
    try:
        yield log
    finally:
        processes.stop(process, grace_s=10)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["cluster", "namespaces"])
def test_a_session_gets_its_worker_and_its_status(
    release: Release, tmp_path: Path, mode: str
) -> None:
    watched = (f"watchNamespaces={{{release.sessions}}}",) if mode == "namespaces" else ()
    release.plane.apply_crds([ROOT / "crds"])
    release.upgrade("operator.replicas=0", *watched)
    api, (port,) = release.plane.api, free_ports(1)
    sessions = SESSIONS.format(release.sessions)
    with _operator(release, tmp_path, port) as log:
        eventually(lambda: _is_ready(port), what="ready operator")
        api.post(
            sessions,
            {
                "apiVersion": "kubebooth.io/v1alpha1",
                "kind": "DreamboothSession",
                "metadata": {"name": "dog"},
                "spec": {
                    "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/a"}}},
                    "concepts": [{"name": "subject", "token": "sks"}],
                    "deletionPolicy": "Delete",
                },
            },
        )
        jobs = f"/apis/batch/v1/namespaces/{release.sessions}/jobs"
        eventually(lambda: api.get(jobs)["items"], what="a Job of the session")
        status = eventually(lambda: api.get(f"{sessions}/dog").get("status"), what="a status")
        assert status["observedGeneration"] == 1
        assert api.get(f"{sessions}/dog")["metadata"]["finalizers"]
        events = f"/api/v1/namespaces/{release.sessions}/events"
        eventually(
            lambda: [e for e in api.get(events)["items"] if e["involvedObject"]["name"] == "dog"],
            what="an event about the session",
        )
        api.delete(f"{sessions}/dog")
    api.merge(f"{sessions}/dog", {"metadata": {"finalizers": None}})
    told = log.read_text()
    assert "forbidden" not in told.lower(), told
    assert '"level": "error"' not in told, told
