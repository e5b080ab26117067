"""The node agent as a whole: watches, and gives each pod of this node its worker.

It must not know what happens inside a pod.
"""

import asyncio
import logging
import os
import random
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.files import read_json, write_json
from kubebooth_cluster.node import launch
from kubebooth_cluster.node.claims import Provisioner
from kubebooth_cluster.node.environment import PodFacts
from kubebooth_cluster.node.events import Events
from kubebooth_cluster.node.hosts import hosts_text
from kubebooth_cluster.node.kube import Kube, until_answered
from kubebooth_cluster.node.kubelet import LogServer
from kubebooth_cluster.node.pod import PodWorker
from kubebooth_cluster.node.register import HOST_IP, Registration
from kubebooth_cluster.node.report import forget_pod
from kubebooth_cluster.node.services import Address, ServiceProxy, routes
from kubebooth_cluster.node.settings import Object, Settings
from kubebooth_cluster.node.site import Devices, Site
from kubebooth_cluster.node.volumes import remove_tree

log = logging.getLogger("kubebooth.node")

_HOSTS_SETTLE_S = 0.1


class Agent:
    """One node; `run` is its whole life."""

    def __init__(self, settings: Settings, kube: Kube) -> None:
        self._settings = settings
        self._kube = kube
        self._folder = settings.folder / "pods"
        self._pods: dict[str, Object] = {}
        self._services: dict[str, Object] = {}
        self._workers: dict[str, PodWorker] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._events = Events(kube, node_name=settings.name)
        self._devices = Devices(settings.gpus)
        self._proxy = ServiceProxy(self._routes)
        self._hosts_poked = asyncio.Event()
        self._provisioner = Provisioner(
            kube, node_name=settings.name, folder=settings.folder / "claims"
        )
        self._logs = LogServer(self._pod_folder, pki=settings.pki, stem=f"node-{settings.name}")

    async def run(self) -> None:
        """Be a node until cancelled; pods run on without the agent."""
        await self._logs.start()
        registration = Registration(self._kube, self._settings, port=self._logs.port)
        services, pods = asyncio.Event(), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    self._kube.follow("/api/v1/services", self._service_seen, synced=services)
                )
                # A pod's environment and hosts file tell of Services: they must be known first.
                await services.wait()
                await self._register(registration)
                write_json(self._settings.folder / "registered.json", {"pid": os.getpid()})
                group.create_task(registration.run())
                group.create_task(self._provisioner.run())
                group.create_task(
                    self._kube.follow(
                        "/api/v1/persistentvolumeclaims", self._provisioner.claim_seen
                    )
                )
                group.create_task(
                    self._kube.follow("/api/v1/persistentvolumes", self._provisioner.volume_seen)
                )
                group.create_task(self._kube.follow("/api/v1/pods", self._pod_seen, synced=pods))
                group.create_task(self._proxy.run())
                group.create_task(self._refresh_hosts())
                await pods.wait()
                self._sweep()
        finally:
            await self._logs.stop()

    async def _register(self, registration: Registration) -> None:
        """Register, also with a server that is only starting and says no at first."""
        while True:
            try:
                await until_answered(registration.register, what="node registration")
            except ApiError as error:
                log.warning("node=%s not registered yet: %s", self._settings.name, error)
                await asyncio.sleep(1)
            else:
                return

    def _sweep(self) -> None:
        """End what an earlier agent left of pods that are no longer this node's."""
        for folder in self._folder.iterdir() if self._folder.exists() else ():
            if folder.name not in self._pods:
                log.info("pod folder=%s belongs to no pod: removed", folder.name)
                self._errand(self._remove(folder))

    def _service_seen(self, what: str, service: Object) -> None:
        uid = service["metadata"]["uid"]
        if what == "GONE":
            self._services.pop(uid, None)
        else:
            self._services[uid] = service
        self._poke()

    def _pod_seen(self, what: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        mine = pod["spec"].get("nodeName") == self._settings.name
        if what == "GONE":
            self._pods.pop(uid, None)
            if mine:
                self._errand(self._bury(uid))
        else:
            self._pods[uid] = pod
            if mine:
                self._own(uid, pod)
        self._poke()

    def _poke(self) -> None:
        self._proxy.poke()
        self._hosts_poked.set()

    def _own(self, uid: str, pod: Object) -> None:
        """A pod of this node was made or changed."""
        worker = self._workers.get(uid)
        if worker is None:
            if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                if "deletionTimestamp" in pod["metadata"]:
                    self._errand(forget_pod(self._site(uid, pod)))
                return
            try:
                worker = PodWorker(self._site(uid, pod), self._hosts)
            except OSError as error:
                # Such as a full disk: the next change of the pod, or list of pods, tries again.
                log.error("pod uid=%s not taken: %s", uid, error)
                return
            log.info("pod=%s taken adopted=%s", worker.site.full_name, worker.adopted)
            self._workers[uid] = worker
            self._runs[uid] = asyncio.create_task(worker.run())
            self._runs[uid].add_done_callback(_tell_failure)
        worker.update(pod)
        if worker.over and "deletionTimestamp" in pod["metadata"]:
            self._errand(worker.finish_deletion())

    def _site(self, uid: str, pod: Object) -> Site:
        folder = self._folder / uid
        kept = read_json(folder / "pod.json") or {}
        ip = kept.get("ip") or self._new_address()
        return Site(
            kube=self._kube,
            settings=self._settings,
            events=self._events,
            devices=self._devices,
            services=lambda: self._services.values(),
            changed=_nothing,
            pod=pod,
            facts=PodFacts(ip=ip, host_ip=HOST_IP, node_name=self._settings.name),
            folder=folder,
        )

    def _new_address(self) -> str:
        """A loopback address that no pod of the cluster has."""
        taken = {(pod.get("status") or {}).get("podIP") for pod in self._pods.values()}
        taken |= {worker.site.facts.ip for worker in self._workers.values()}
        while True:
            ip = f"{self._settings.pod_prefix}.{random.randrange(256)}.{random.randrange(1, 255)}"
            if ip not in taken:
                return ip

    async def _bury(self, uid: str) -> None:
        """A pod's object is gone: end what still runs of it and remove its folder."""
        worker, run = self._workers.get(uid), self._runs.get(uid)
        if worker is not None and run is not None:
            worker.vanish()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([run])
        self._workers.pop(uid, None)
        self._runs.pop(uid, None)
        await self._remove(self._folder / uid)

    async def _remove(self, folder: Path) -> None:
        await asyncio.to_thread(launch.kill_leftovers, folder)
        await asyncio.to_thread(remove_tree, folder)

    def _routes(self) -> dict[Address, list[Address]]:
        host, _, port = self._kube.server.removeprefix("https://").partition(":")
        return routes(self._services.values(), self._pods.values(), api=(host, int(port or 443)))

    def _hosts(self, pod: Object, ip: str) -> str:
        return hosts_text(pod, ip, self._services.values(), self._pods.values())

    async def _refresh_hosts(self) -> None:
        while True:
            await self._hosts_poked.wait()
            await asyncio.sleep(_HOSTS_SETTLE_S)
            self._hosts_poked.clear()
            for worker in list(self._workers.values()):
                if not worker.over:
                    worker.refresh_hosts()

    def _pod_folder(self, namespace: str, name: str) -> Path | None:
        for uid, pod in self._pods.items():
            metadata = pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return self._folder / uid
        return None

    def _errand(self, job: Coroutine[Any, Any, None]) -> None:
        """Do something in the background, and say so if it fails."""
        task = asyncio.create_task(job)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        task.add_done_callback(_tell_failure)


def _nothing() -> None:
    """Until a worker says who wants to hear of changes, nobody does."""


def _tell_failure(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        log.info("a pod's task was cancelled")
        return
    error = task.exception()
    if error is not None:
        log.error("a pod's task failed", exc_info=error)
