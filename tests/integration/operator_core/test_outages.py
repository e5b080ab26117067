"""The operator outlives the API server, its streams, its leader and its token."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubebooth_cluster.testing import RealApi, eventually, found
from kubebooth_operator.login import Login, from_kubeconfig

from tests.integration.operator_core.running import (
    Probes,
    Proxy,
    free_port,
    operator,
    process,
)

ROOT = Path(__file__).parents[3]
SESSIONS = "dreamboothsessions"


def through(proxy: Proxy, api: RealApi) -> Login:
    """Credentials of the administrator for the proxy."""
    direct = from_kubeconfig(api.kubeconfig)
    return Login(
        server=f"https://127.0.0.1:{proxy.port}",
        authority_pem=direct.authority_pem,
        token=direct.token,
        certificate_pem=direct.certificate_pem,
        key_pem=direct.key_pem,
    )


def test_a_deletion_that_no_stream_told_is_found_after_410_gone(
    probe_api: RealApi, probes: Probes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kopf._cogs.clients.watching")
    proxy = Proxy(probe_api.control_plane.layout.api_port)
    try:
        login = through(proxy, probe_api)
        with operator(
            probe_api, probes.namespace, login=lambda: login, lease_duration_s=60.0
        ) as running:
            for name in ("dead", "alive"):
                probes.create(name, value=1)
                probes.wait_ready(name, 1)
            proxy.cut()
            probes.delete("dead")
            probes.edit("alive", value=2)
            # A new server remembers no old versions: whoever asks for one is told 410 Gone.
            probe_api.control_plane.restart("kube-apiserver")
            caplog.clear()
            proxy.heal()
            probes.wait_ready("alive", 2)
            kind = running.application.resources.parent("probes")
            eventually(
                lambda: set(running.application.cache.names(kind)) == {(probes.namespace, "alive")},
                what="a cache without the dead object",
                timeout_s=30,
            )
            assert any("Restarting the watch-stream for probes" in m for m in caplog.messages)
    finally:
        proxy.close()


def test_without_survivors_the_next_full_list_finds_the_deletions(
    probe_api: RealApi, probes: Probes
) -> None:
    proxy = Proxy(probe_api.control_plane.layout.api_port)
    try:
        login = through(proxy, probe_api)
        with operator(
            probe_api, probes.namespace, login=lambda: login, resync_s=2.0, lease_duration_s=60.0
        ) as running:
            probes.create("dead", value=1)
            probes.wait_ready("dead", 1)
            proxy.cut()
            probes.delete("dead")
            proxy.heal()
            kind = running.application.resources.parent("probes")
            eventually(lambda: running.application.cache.count(kind) == 0, what="an empty cache")
    finally:
        proxy.close()


def test_work_goes_on_after_the_api_server_was_killed(probe_api: RealApi, probes: Probes) -> None:
    with operator(probe_api, probes.namespace, lease_duration_s=60.0) as running:
        probes.create("one", value=1)
        probes.wait_ready("one", 1)
        running.client.before_apply = lambda body: 0.3
        probes.edit("one", value=2)
        probe_api.control_plane.restart("kube-apiserver")
        probes.create("two", value=4)
        probes.wait_ready("one", 2)
        probes.wait_ready("two", 4)


@pytest.fixture
def session_api(control_plane: RealApi) -> RealApi:
    """The API server with our own kinds."""
    control_plane.apply_crds([ROOT / "crds"])
    return control_plane


def sessions(api: RealApi, namespace: str) -> Any:
    """A function that creates a suspended session and one that reads its phase."""
    body = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
    body["spec"]["suspend"] = True
    collection = f"/apis/kubebooth.io/v1alpha1/namespaces/{namespace}/{SESSIONS}"

    def create(name: str) -> None:
        api.api.post(collection, {**body, "metadata": {"name": name}})

    def phase(name: str) -> str:
        status = api.api.get(f"{collection}/{name}").get("status") or {}
        return str(status.get("phase") or "")

    return create, phase


def environment(namespace: str, name: str) -> dict[str, str]:
    """Settings of one replica."""
    return {
        "POD_NAMESPACE": namespace,
        "POD_NAME": name,
        "KUBEBOOTH_PORT": str(free_port()),
        "KUBEBOOTH_WATCH_NAMESPACES": namespace,
        "KUBEBOOTH_STORE_ENDPOINT": "http://127.0.0.1:9",
        "KUBEBOOTH_STORE_BUCKET": "kubebooth",
        "KUBEBOOTH_LEASE_SECONDS": "3",
    }


def holder(api: RealApi, namespace: str) -> str:
    """Who holds the Lease."""
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/kubebooth-operator"
    there = found(api.api, lease)
    return str((there or {}).get("spec", {}).get("holderIdentity") or "")


def test_a_standby_takes_over_from_a_killed_leader_and_at_once_from_a_stopped_one(
    session_api: RealApi, namespace: str, tmp_path: Path
) -> None:
    create, phase = sessions(session_api, namespace)
    config = session_api.kubeconfig
    with (
        process(config, log=tmp_path / "a", **environment(namespace, "a")) as a,
        process(config, log=tmp_path / "b", **environment(namespace, "b")) as b,
        process(config, log=tmp_path / "c", **environment(namespace, "c")) as c,
    ):
        replicas = {"a": a, "b": b, "c": c}
        create("one")
        eventually(lambda: phase("one") == "Suspended", what="a first status")
        first = holder(session_api, namespace)
        replicas.pop(first).kill()
        create("two")
        eventually(lambda: phase("two") == "Suspended", what="a status by the second leader")
        second = holder(session_api, namespace)
        assert second in replicas
        replicas[second].send_signal(signal.SIGTERM)
        assert replicas.pop(second).wait(30) == 0
        create("three")
        eventually(lambda: phase("three") == "Suspended", what="a status by the third leader")
        assert holder(session_api, namespace) in replicas


def test_a_leader_that_slept_past_its_lease_ends_without_a_write(
    session_api: RealApi, namespace: str, tmp_path: Path
) -> None:
    create, phase = sessions(session_api, namespace)
    config = session_api.kubeconfig
    with process(config, log=tmp_path / "a", **environment(namespace, "a")) as sleeper:
        eventually(lambda: holder(session_api, namespace) == "a", what="a leader")
        os.kill(sleeper.pid, signal.SIGSTOP)
        with process(config, log=tmp_path / "b", **environment(namespace, "b")):
            eventually(lambda: holder(session_api, namespace) == "b", what="its successor")
            create("one")
            eventually(lambda: phase("one") == "Suspended", what="a status")
            os.kill(sleeper.pid, signal.SIGCONT)
            assert sleeper.wait(30) == 1
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert not [line for line in lines if line.get("writes")]
    assert "another replica may lead" in lines[-1]["message"]


def test_an_account_with_the_charts_rights_and_a_renewed_token_is_enough(
    session_api: RealApi, namespace: str, tmp_path: Path
) -> None:
    kubeconfig, renew = least_rights(session_api, namespace, tmp_path)
    create, phase = sessions(session_api, namespace)
    log = tmp_path / "operator.log"
    with process(kubeconfig, log=log, **environment(namespace, "a")) as running:
        create("one")
        eventually(lambda: phase("one") == "Suspended", what="a status", timeout_s=60)
        renew()
        create("two")
        eventually(lambda: phase("two") == "Suspended", what="a status by the new token")
        assert running.poll() is None
    text = log.read_text()
    assert "403" not in text
    assert "Forbidden" not in text


RULES: list[dict[str, list[str]]] = [
    {
        "apiGroups": ["kubebooth.io"],
        "resources": [SESSIONS, "modelconversions", "webuiinstances"],
        "verbs": ["get", "list", "watch", "patch"],
    },
    {
        "apiGroups": ["kubebooth.io"],
        "resources": ["modelconversions"],
        "verbs": ["create", "delete"],
    },
    {
        "apiGroups": ["kubebooth.io"],
        "resources": [f"{SESSIONS}/status", "modelconversions/status", "webuiinstances/status"],
        "verbs": ["patch"],
    },
    {
        "apiGroups": ["batch", ""],
        "resources": ["jobs", "configmaps"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "patch"],
    },
]
"""Everything the operator asks of the API server, in its namespaces; nothing cluster-wide."""


def least_rights(api: RealApi, namespace: str, folder: Path) -> tuple[Path, Any]:
    """A kubeconfig with a token file of an account that has `RULES`, and a function that writes
    another token into the file and takes the rights of the first away."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    api.api.post(accounts, {"metadata": {"name": "operator"}})
    api.api.post(f"{rbac}/roles", {"metadata": {"name": "operator"}, "rules": RULES})
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
    binding = {"metadata": {"name": "operator"}, "subjects": [subject], "roleRef": role}
    api.api.post(f"{rbac}/rolebindings", binding)
    token_file = folder / "token"

    def token(bound_to: str) -> None:
        secret = api.api.post(secrets, {"metadata": {"name": bound_to}})
        bound = {"kind": "Secret", "apiVersion": "v1", "name": bound_to}
        bound["uid"] = secret["metadata"]["uid"]
        asked = {"spec": {"audiences": [], "expirationSeconds": 3600, "boundObjectRef": bound}}
        answer = api.api.post(f"{accounts}/operator/token", asked)
        token_file.write_text(answer["status"]["token"])

    def renew() -> None:
        token("second")
        api.api.delete(f"{secrets}/first")
        # The API server believes a token for ten seconds after it has seen it.
        time.sleep(11)

    token("first")
    config = yaml.safe_load(api.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"tokenFile": "token"}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    return kubeconfig, renew
