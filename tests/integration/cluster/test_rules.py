"""The node's pure rules: references, quantities, image names, phases, routes, hosts."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kubebooth_cluster.node.environment import expand
from kubebooth_cluster.node.hosts import hosts_text
from kubebooth_cluster.node.images import find_image, repository
from kubebooth_cluster.node.quantities import divide, parse_quantity
from kubebooth_cluster.node.records import Exit
from kubebooth_cluster.node.sandbox import Mount, Sandbox, bwrap_options
from kubebooth_cluster.node.services import routes
from kubebooth_cluster.node.status import ContainerView, PodView, phase
from kubebooth_cluster.places import checkout_folder

_NOW = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)$(B)y", "x12y"),
        ("$$(A)", "$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$$(A)", "$1"),
        ("$A $", "$A $"),
    ],
)
def test_references_expand_as_in_kubernetes(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("500m", Decimal("0.5")),
        ("4Gi", 4 << 30),
        ("1e3", 1000),
        ("2k", 2000),
        ("1.5Mi", 1572864),
        ("12E", 12 * 10**18),
    ],
)
def test_quantities_are_exact(text: str, number: int | Decimal) -> None:
    assert parse_quantity(text) == number


def test_a_word_is_no_quantity_and_a_divisor_rounds_up() -> None:
    with pytest.raises(ValueError, match="'lots' is no quantity"):
        parse_quantity("lots")
    assert divide(parse_quantity("1500m"), parse_quantity("1")) == 2


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("busybox", "docker.io/library/busybox"),
        ("busybox:1.36", "docker.io/library/busybox"),
        ("chrislusf/seaweedfs:4", "docker.io/chrislusf/seaweedfs"),
        ("ghcr.io/kubebooth/trainer:v1@sha256:abc", "ghcr.io/kubebooth/trainer"),
        ("localhost:5000/x:1", "localhost:5000/x"),
    ],
)
def test_image_names_are_read_as_docker_reads_them(image: str, name: str) -> None:
    assert repository(image) == name


def test_a_broken_image_table_is_refused_by_name(tmp_path: Any) -> None:
    table = tmp_path / "images.json"
    table.write_text('{"busybox": {"colour": "red"}}')
    with pytest.raises(Exception, match=r"images\.json.*colour"):
        find_image("busybox", table)


def _one(kind: str = "main", *, code: int | None = None, **more: Any) -> ContainerView:
    ended = None if code is None else Exit(code, "Error", _NOW, _NOW, "id")
    view = {"name": "c", "image": "i", "image_id": "", "kind": kind, "restarts": False}
    return ContainerView(**{**view, "exit": ended, **more})


def _phase(*containers: ContainerView, over: bool = False) -> str:
    pod = {"metadata": {}, "spec": {}}
    return phase(PodView(pod, containers, "127.0.0.2", "127.0.0.1", _NOW, over))


def test_phases_follow_the_kubelet() -> None:
    waiting = ("ContainerCreating", "")
    crash = Exit(1, "Error", _NOW, _NOW, "id")
    assert _phase(_one(waiting=waiting)) == "Pending"
    assert _phase(_one()) == "Pending"
    assert _phase(_one(previous=crash)) == "Running"
    assert _phase(_one(running_since=_NOW)) == "Running"
    assert _phase(_one(code=0)) == "Succeeded"
    assert _phase(_one(code=0), _one(code=1)) == "Failed"
    assert _phase(_one(code=0), _one(running_since=_NOW)) == "Running"
    assert (
        _phase(_one(waiting=("CrashLoopBackOff", ""), previous=crash, restarts=True)) == "Running"
    )
    assert _phase(_one(code=1, restarts=True)) == "Running"
    assert _phase(_one("init", running_since=_NOW), _one(waiting=waiting)) == "Pending"
    assert _phase(_one("init", code=1), _one(waiting=waiting)) == "Failed"
    assert _phase(_one("init", code=1, restarts=True), _one(waiting=waiting)) == "Pending"
    sidecar = _one("sidecar", running_since=_NOW, started=True, restarts=True)
    assert _phase(sidecar, _one(code=0)) == "Running"
    assert _phase(_one("sidecar", code=0, restarts=True), _one(code=0), over=True) == "Succeeded"
    assert _phase(_one(waiting=waiting), over=True) == "Failed"


def _pod(name: str, ip: str, *, ready: bool = True, **spec: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    ports = [{"name": "http", "containerPort": 8080}]
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "ports": ports}], **spec},
        "status": {"podIP": ip, "phase": "Running", "conditions": conditions},
    }


def _service(name: str, ip: str, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": "http"}]
    metadata = {"name": name, "namespace": "ns", "uid": name}
    return {
        "metadata": metadata,
        "spec": {"clusterIP": ip, "ports": ports, "selector": {"app": "web"}, **spec},
    }


def test_a_service_leads_to_ready_pods_by_the_name_of_their_port() -> None:
    pods = [_pod("a", "127.1.0.1"), _pod("b", "127.1.0.2", ready=False)]
    found = routes([_service("web", "127.2.0.1")], pods, api=("127.0.0.1", 1))
    assert found == {("127.2.0.1", 80): [("127.1.0.1", 8080)]}
    every = _service("web", "127.2.0.1", publishNotReadyAddresses=True)
    assert len(routes([every], pods, api=("127.0.0.1", 1))[("127.2.0.1", 80)]) == 2


def test_hosts_name_services_shortly_only_in_their_own_namespace() -> None:
    services = [_service("web", "127.2.0.1"), _service("db", "None")]
    pods = [_pod("db-0", "127.1.0.1", hostname="db-0", subdomain="db")]
    own = hosts_text(pods[0], "127.1.0.1", services, pods).splitlines()
    assert "127.2.0.1 web web.ns web.ns.svc web.ns.svc.cluster.local" in own
    assert "127.1.0.1 db-0.db db-0.db.ns db-0.db.ns.svc db-0.db.ns.svc.cluster.local" in own
    stranger = {"metadata": {"name": "x", "namespace": "other"}, "spec": {}}
    far = hosts_text(stranger, "127.1.0.9", services, pods).splitlines()
    assert "127.2.0.1 web.ns web.ns.svc web.ns.svc.cluster.local" in far


def test_a_volume_over_the_checkout_does_not_hide_what_python_needs(tmp_path: Path) -> None:
    checkout = checkout_folder()
    sandbox = Sandbox(
        command=("true",),
        workdir="/",
        environment={},
        hostname="pod",
        user=65532,
        group=65532,
        mounts=(Mount(tmp_path, str(checkout.parent), read_only=False),),
        hidden=(),
        read_only_root=True,
        die_with_parent=True,
    )
    words = bwrap_options(sandbox)
    volume = words.index(str(tmp_path))
    assert str(checkout) in words[volume + 2 :]
