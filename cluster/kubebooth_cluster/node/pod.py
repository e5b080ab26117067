"""The life of one pod on this node, from its volumes to its last status.

It must not know how a container runs, nor which other pods there are.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.files import read_json, write_json
from kubebooth_cluster.node import launch
from kubebooth_cluster.node.container import Container
from kubebooth_cluster.node.environment import ConfigError
from kubebooth_cluster.node.kube import Unreachable
from kubebooth_cluster.node.quantities import parse_quantity
from kubebooth_cluster.node.records import Exit
from kubebooth_cluster.node.report import StatusWriter, forget_pod
from kubebooth_cluster.node.settings import Object, age_s, now
from kubebooth_cluster.node.site import Site
from kubebooth_cluster.node.status import PodView, phase
from kubebooth_cluster.node.volumes import MountError, prepare_volumes, used_bytes

log = logging.getLogger("kubebooth.node")

_MOUNT_RETRY_S = 1.0
_USAGE_CHECK_S = 2.0


class PodWorker:
    """Runs one pod; `run` is its task, `update` and `vanish` tell it what the API server says."""

    def __init__(self, site: Site, hosts: Callable[[Object, str], str]) -> None:
        """`hosts` gives the text of /etc/hosts for a pod and its address."""
        self.site = site
        self._hosts = hosts
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._over = False
        self._gone = False
        self._failure: tuple[str, str] | None = None
        self._deadline = 0.0
        self._stopper: asyncio.Task[None] | None = None
        site.changed = self._changed.set
        spec = site.pod["spec"]
        inits = [
            Container(site, one, "sidecar" if one.get("restartPolicy") == "Always" else "init")
            for one in spec.get("initContainers") or ()
        ]
        self.containers = inits + [Container(site, one, "main") for one in spec["containers"]]
        self._writer = StatusWriter(site)
        notes = read_json(site.folder / "pod.json")
        self.adopted = notes is not None
        self._started_at: str = notes["startedAt"] if notes else now()
        write_json(site.folder / "pod.json", {"startedAt": self._started_at, "ip": site.facts.ip})

    @property
    def _mains(self) -> list[Container]:
        return [one for one in self.containers if one.kind == "main"]

    @property
    def _sidecars(self) -> list[Container]:
        return [one for one in self.containers if one.kind == "sidecar"]

    @property
    def _grace_s(self) -> float:
        return float(self.site.pod["spec"].get("terminationGracePeriodSeconds", 30))

    @property
    def over(self) -> bool:
        """Whether every container ended for good and the status says so."""
        return self._over

    def update(self, pod: Object) -> None:
        """Take the newest object; one that is being deleted starts, or hurries, the end."""
        self.site.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            grace = pod["metadata"].get("deletionGracePeriodSeconds")
            self.terminate(grace_s=30 if grace is None else grace)
        self._changed.set()

    def vanish(self) -> None:
        """The object is gone (deleted by force, or with its node): end at once, tell nobody."""
        self._gone = True
        self.terminate(grace_s=0)

    def terminate(self, *, grace_s: float) -> None:
        """Begin the end, or bring an end that has begun nearer."""
        deadline = time.monotonic() + grace_s
        if self._stopper is None:
            self._deadline = deadline
            self._stopping.set()
            self._stopper = asyncio.create_task(self._stop_all())
        elif deadline < self._deadline:
            self._deadline = deadline
            asyncio.get_running_loop().call_later(grace_s, self._kill_all)

    def _kill_all(self) -> None:
        for container in self.containers:
            container.kill()

    async def _stop_all(self) -> None:
        """Main containers first, together; then the sidecars, the last started first."""
        first = [one for one in self.containers if one.kind != "sidecar"]
        await asyncio.gather(*(one.stop(self._deadline) for one in first))
        await self._stop_sidecars()

    async def _stop_sidecars(self) -> None:
        for sidecar in reversed(self._sidecars):
            grace = self._grace_s if not self._deadline else self._deadline - time.monotonic()
            await sidecar.stop(time.monotonic() + max(grace, 2.0))

    def refresh_hosts(self) -> None:
        """Bring /etc/hosts up to date in place: a mounted file keeps its inode."""
        path = self.site.folder / "hosts"
        text = self._hosts(self.site.pod, self.site.facts.ip).encode()
        if path.exists() and path.read_bytes() == text:
            return
        with path.open("r+b" if path.exists() else "wb") as stream:
            stream.write(text)
            stream.truncate()

    async def run(self) -> None:
        """Live the whole life; afterwards every process of the pod is gone."""
        if self.adopted:
            self._kill_strays()
        self.refresh_hosts()
        helpers = [asyncio.create_task(job()) for job in self._helpers()]
        try:
            await self._live()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        launch.kill_leftovers(self.site.folder)
        self.site.devices.release(f"{self.site.uid}/")
        self._over = True
        if not self._gone:
            await self._report()
            await self.finish_deletion()
        log.info("pod=%s over phase=%s", self.site.full_name, phase(self._view()))

    def _kill_strays(self) -> None:
        """End what an earlier agent started but did not live to write down."""
        names = [one.process_name for one in self.containers if one.record is not None]
        launch.kill_leftovers(self.site.folder, but=names)

    def _helpers(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        spec = self.site.pod["spec"]
        jobs = [self._report_changes, self._refresh_volumes]
        if spec.get("activeDeadlineSeconds") is not None:
            jobs.append(self._watch_deadline)
        if any((one.get("emptyDir") or {}).get("sizeLimit") for one in spec.get("volumes") or ()):
            jobs.append(self._watch_usage)
        return jobs

    async def _live(self) -> None:
        for container in self.containers:
            if container.record is None:
                first = container is self.containers[0] or not self._has_inits
                container.wait_for("ContainerCreating" if first else "PodInitializing")
        self._changed.set()
        if not await self._mount():
            await self._stopped()
            return
        background: list[asyncio.Task[Exit | None]] = []
        if await self._initialize(background):
            runs = [asyncio.create_task(one.run()) for one in self._mains]
            await asyncio.gather(*runs)
        if self._stopper is None:
            await self._stop_sidecars()
        await self._stopped()
        await asyncio.gather(*background)

    @property
    def _has_inits(self) -> bool:
        return any(one.kind != "main" for one in self.containers)

    async def _stopped(self) -> None:
        if self._stopper is not None:
            await self._stopper

    async def _mount(self) -> bool:
        """Set the volumes up, as often as it takes; False when the pod is to stop instead."""
        while not self._stopping.is_set():
            try:
                await self._prepare()
            except (MountError, ConfigError, ApiError, OSError) as error:
                self.site.events.tell(self.site.pod, "FailedMount", str(error), warning=True)
                log.info("pod=%s waits for its volumes: %s", self.site.full_name, error)
            except Unreachable as error:
                log.info("pod=%s waits for the API server: %s", self.site.full_name, error)
            else:
                return True
            await self._pause(_MOUNT_RETRY_S)
        return False

    async def _prepare(self) -> None:
        self.site.volumes = await prepare_volumes(
            self.site.kube,
            self.site.pod,
            facts=self.site.facts,
            folder=self.site.folder / "volumes",
        )

    async def _initialize(self, background: list[asyncio.Task[Exit | None]]) -> bool:
        """Init containers in order; False when one failed for good or the pod is to stop."""
        for container in self.containers:
            if container.kind == "main":
                continue
            if self._stopping.is_set():
                return False
            if container.kind == "sidecar":
                background.append(asyncio.create_task(container.run()))
                await self._first(container.started)
                continue
            ended = await container.run()
            if ended is None or ended.code != 0:
                return False
        return not self._stopping.is_set()

    async def _first(self, started: asyncio.Event) -> None:
        """Wait until a sidecar started, or the pod is to stop."""
        waits = [asyncio.create_task(one.wait()) for one in (started, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def fail(self, reason: str, message: str, *, grace_s: float) -> None:
        """End the pod with a failure of its own, such as an eviction by this node."""
        self._failure = (reason, message)
        self.site.events.tell(self.site.pod, reason, message, warning=True)
        self.terminate(grace_s=grace_s)

    async def _watch_deadline(self) -> None:
        limit = self.site.pod["spec"]["activeDeadlineSeconds"]
        await asyncio.sleep(max(0.0, limit - age_s(self._started_at)))
        message = "Pod was active on the node longer than the specified deadline"
        self.fail("DeadlineExceeded", message, grace_s=self._grace_s)

    async def _watch_usage(self) -> None:
        limits = {
            one["name"]: one["emptyDir"]["sizeLimit"]
            for one in self.site.pod["spec"]["volumes"]
            if (one.get("emptyDir") or {}).get("sizeLimit")
        }
        while True:
            await asyncio.sleep(_USAGE_CHECK_S)
            for name, limit in limits.items():
                used = await asyncio.to_thread(used_bytes, self.site.folder / "volumes" / name)
                if used > parse_quantity(limit):
                    told = f'Usage of EmptyDir volume "{name}" exceeds the limit "{limit}". '
                    self.fail("Evicted", told, grace_s=1)
                    return

    async def _refresh_volumes(self) -> None:
        """Bring ConfigMaps, Secrets and tokens up to date now and then."""
        while True:
            await asyncio.sleep(self.site.settings.refresh_volumes_s)
            try:
                await self._prepare()
            except (MountError, ConfigError, ApiError, Unreachable, OSError) as error:
                log.info("pod=%s keeps its volumes as they are: %s", self.site.full_name, error)

    def _view(self) -> PodView:
        return PodView(
            pod=self.site.pod,
            containers=[one.view() for one in self.containers],
            ip=self.site.facts.ip,
            host_ip=self.site.facts.host_ip,
            started_at=self._started_at,
            over=self._over,
            failure=self._failure,
        )

    async def _report_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._report()
            # Changes come in bursts; one write tells of all of them.
            await asyncio.sleep(0.02)

    async def _report(self) -> None:
        if not self._gone:
            await self._writer.write(self._view())

    async def finish_deletion(self) -> None:
        """Let the API server forget a pod that was deleted and has ended."""
        if "deletionTimestamp" in self.site.pod["metadata"]:
            await forget_pod(self.site)
