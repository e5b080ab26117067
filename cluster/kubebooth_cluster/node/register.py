"""The Node object and its Lease: what tells the cluster that this node is there and well."""

import asyncio
import datetime
import logging
import os
import platform
from pathlib import Path
from typing import Any

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.gobuild import KUBERNETES_VERSION
from kubebooth_cluster.node.configure import GPU
from kubebooth_cluster.node.kube import Kube, Unreachable
from kubebooth_cluster.node.settings import Object, Settings, now

log = logging.getLogger("kubebooth.node")

HOST_IP = "127.0.0.1"

_LEASE_S = 40
_RENEW_S = 10
_STATUS_EVERY = 6


class Registration:
    """Creates the Node once, then keeps its status and Lease fresh."""

    def __init__(self, kube: Kube, settings: Settings, *, port: int) -> None:
        """`port` is where the node serves container logs."""
        self._kube = kube
        self._settings = settings
        self._port = port
        self._path = f"/api/v1/nodes/{settings.name}"
        self._since = now()

    async def register(self) -> None:
        """Create the Node, unless it is there, and say that it is ready."""
        body = {"apiVersion": "v1", "kind": "Node", "metadata": self._metadata()}
        try:
            await self._kube.post("/api/v1/nodes", body)
        except ApiError as error:
            if error.code != 409:
                raise
            await self._kube.merge(self._path, {"metadata": self._metadata()})
        await self._kube.patch(f"{self._path}/status", {"status": self.status()})

    async def run(self) -> None:
        """Renew for ever. A Node that somebody deleted stays deleted, as with a kubelet."""
        beats = 0
        while True:
            try:
                await self._renew()
                if beats % _STATUS_EVERY == 0:
                    await self._kube.patch(f"{self._path}/status", {"status": self.status()})
            except (ApiError, Unreachable) as error:
                log.info("node=%s not renewed: %s", self._settings.name, error)
                await asyncio.sleep(1)
                continue
            beats += 1
            await asyncio.sleep(_RENEW_S)

    def _metadata(self) -> Object:
        name = self._settings.name
        return {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": _architecture(),
                "kubebooth.io/one-machine": "true",
            },
        }

    async def _renew(self) -> None:
        where = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        name = self._settings.name
        spec = {"holderIdentity": name, "leaseDurationSeconds": _LEASE_S, "renewTime": moment}
        try:
            await self._kube.merge(f"{where}/{name}", {"spec": spec})
        except ApiError as error:
            if error.code != 404:
                raise
            node = await self._kube.get(self._path)
            owner = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": name,
                "uid": node["metadata"]["uid"],
            }
            metadata = {"name": name, "ownerReferences": [owner]}
            await self._kube.post(where, {"metadata": metadata, "spec": spec})

    def status(self) -> Object:
        """The status of a healthy node with what this machine, or the settings, offer."""
        offered = {
            "cpu": str(self._settings.cpus or os.cpu_count() or 1),
            "memory": str(self._settings.memory_bytes or _memory_bytes()),
            "ephemeral-storage": str(_disk_bytes(self._settings.folder)),
            "pods": "500",
            **({GPU: str(self._settings.gpus)} if self._settings.gpus else {}),
        }
        return {
            "capacity": offered,
            "allocatable": offered,
            "conditions": _conditions(self._since),
            "addresses": [
                {"type": "InternalIP", "address": HOST_IP},
                {"type": "Hostname", "address": self._settings.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": _node_info(),
        }


def _conditions(since: str) -> list[Object]:
    healthy: list[tuple[str, str, str]] = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID"),
        ("Ready", "True", "KubeletReady"),
    ]
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": "node agent of a one-machine cluster",
            "lastHeartbeatTime": now(),
            "lastTransitionTime": since,
        }
        for kind, status, reason in healthy
    ]


def _node_info() -> dict[str, Any]:
    machine = _text("/etc/machine-id")
    return {
        "machineID": machine,
        "systemUUID": machine,
        "bootID": _text("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": platform.release(),
        "osImage": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "containerRuntimeVersion": "bwrap://1",
        "kubeletVersion": KUBERNETES_VERSION,
        "kubeProxyVersion": KUBERNETES_VERSION,
        "operatingSystem": "linux",
        "architecture": _architecture(),
    }


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _disk_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize
