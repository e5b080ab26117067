"""One container over all its attempts: start, adopt, probe, stop, restart with back-off.

It must not know the other containers of its pod; the pod decides when it runs.
"""

import asyncio
import dataclasses
import logging
from pathlib import Path

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.node import launch
from kubebooth_cluster.node.attempt import Attempt
from kubebooth_cluster.node.configure import configure, gpu_count
from kubebooth_cluster.node.environment import ConfigError
from kubebooth_cluster.node.images import Image
from kubebooth_cluster.node.kube import Unreachable
from kubebooth_cluster.node.pulling import pulled
from kubebooth_cluster.node.records import Exit, Record, read_record, write_record
from kubebooth_cluster.node.sandbox import Sandbox, bwrap_options
from kubebooth_cluster.node.settings import Object, age_s, now
from kubebooth_cluster.node.site import Site
from kubebooth_cluster.node.status import ContainerView
from kubebooth_cluster.node.termination import clean_start_error, termination_message

log = logging.getLogger("kubebooth.node")

_CONFIG_RETRY_S = 1.0
_HEALTHY_S = 600


class Container:
    """The life of one container; `run` is its task, the other verbs may be called beside it."""

    def __init__(self, site: Site, spec: Object, kind: str) -> None:
        """`kind` is main, init or sidecar."""
        self.site = site
        self.spec = spec
        self.kind = kind
        self.name = str(spec["name"])
        self.folder = site.folder / "containers" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record: Record | None = read_record(self.folder / "record.json")
        self.started = asyncio.Event()
        self._attempt: Attempt | None = None
        self._waiting: tuple[str, str] | None = None
        self._stopping = asyncio.Event()
        self._deadline = 0.0
        self._ending: asyncio.Task[None] | None = None
        self._fresh = self.record is None
        if self.record is not None:
            site.devices.hold(self._owner, self.record.gpus)

    @property
    def _owner(self) -> str:
        return f"{self.site.uid}/{self.name}"

    @property
    def policy(self) -> str:
        """Always, OnFailure or Never: its own, or the pod's."""
        if self.kind == "sidecar":
            return "Always"
        policy = str(self.spec.get("restartPolicy") or self.site.restart_policy)
        return "OnFailure" if self.kind == "init" and policy == "Always" else policy

    @property
    def launched(self) -> launch.Launched | None:
        """The running attempt, if there is one."""
        record = self.record
        return record.launched if record is not None and record.exit is None else None

    @property
    def process_name(self) -> str:
        """What the process list calls the newest attempt."""
        number = self.record.number if self.record else 0
        return f"{launch.marker(self.site.folder)}{self.name}/{number}"

    def log_file(self, number: int) -> Path:
        """The log of one attempt."""
        return self.folder / f"{number}.log"

    def view(self) -> ContainerView:
        """What the pod's status says of it."""
        record = self.record
        running = self.launched is not None and record is not None
        return ContainerView(
            name=self.name,
            image=self.spec["image"],
            image_id=f"{self.spec['image']}@local" if record else "",
            kind=self.kind,
            restarts=self.policy != "Never",
            waiting=self._waiting,
            running_since=record.started_at if running and record else None,
            exit=record.exit if record and self._waiting is None else None,
            previous=_last_exit(record, waiting=self._waiting is not None),
            container_id=record.container_id if record else "",
            restart_count=record.number if record else 0,
            started=running and self.started.is_set(),
            ready=self._is_ready(),
        )

    def _is_ready(self) -> bool:
        if self.kind == "init":
            return bool(self.record and self.record.exit and self.record.exit.code == 0)
        return self._attempt is not None and self._attempt.ready

    def wait_for(self, reason: str, message: str = "") -> None:
        """Say why it does not run."""
        if self._waiting != (reason, message):
            self._waiting = (reason, message)
            self.site.changed()

    async def run(self) -> Exit | None:
        """Run until it ended for good; None when it was stopped before it ever started."""
        while True:
            ended = await self._once()
            if ended is None or self._stopping.is_set() or not self._restarts(ended):
                if self.kind == "init":
                    # What an init container had is for the next ones, as the scheduler counts.
                    self.site.devices.release(self._owner)
                return self.record.exit if self.record else None
            if not await self._back_off(ended):
                self._waiting = None
                return ended

    def _restarts(self, ended: Exit) -> bool:
        return self.policy == "Always" or (self.policy == "OnFailure" and ended.code != 0)

    async def _once(self) -> Exit | None:
        """One attempt to its end, or the rest of the one that an earlier agent started."""
        if not self._fresh:
            await self._recover()
        if self._fresh and not await self._start():
            return None
        self._waiting = None
        if self.record is not None and self.record.exit is None:
            await self._attend()
        self._fresh = True
        return self.record.exit if self.record else None

    async def _recover(self) -> None:
        """Find out what became of an attempt that an earlier agent was just starting."""
        record = self.record
        if record is None or record.launched is not None or record.exit is not None:
            return
        status = self.folder / f"{record.number}.status"
        launched = await launch.recover(self.process_name, self.site.folder, status)
        if launched is None:
            self._fresh = True
        else:
            self._keep(dataclasses.replace(record, launched=launched))

    async def _start(self) -> bool:
        """Configure and start the next attempt; False when it is to stop instead."""
        while not self._stopping.is_set():
            image = await self._image()
            if image is None:
                return False
            try:
                await self._launch(image)
            except ConfigError as error:
                self.wait_for("CreateContainerConfigError", str(error))
                self.site.events.tell(self.site.pod, "Failed", f"Error: {error}", warning=True)
            except ApiError as error:
                self.wait_for("CreateContainerConfigError", str(error))
            except OSError as error:
                self.wait_for("CreateContainerError", str(error))
            except Unreachable as error:
                log.info("container=%s waits for the API server: %s", self.name, error)
            else:
                return True
            await self._pause(_CONFIG_RETRY_S)
        return False

    async def _image(self) -> Image | None:
        """The image, or None when it is to stop."""
        return await pulled(
            self.spec["image"],
            policy=self.spec.get("imagePullPolicy") or "IfNotPresent",
            settings=self.site.settings,
            say=self.wait_for,
            warn=lambda text: self.site.events.tell(self.site.pod, "Failed", text, warning=True),
            pause=self._pause,
        )

    async def _launch(self, image: Image) -> None:
        before, number = self.record, 0
        if before is not None:
            # One that was planned but never begun keeps its number.
            number = before.number + (1 if before.launched else 0)
        gpus = self.site.devices.take(self._owner, gpu_count(self.spec))
        if gpus is None:
            raise ConfigError("Allocate failed due to requested number of devices unavailable")
        message_file = self.folder / f"{number}.message"
        message_file.write_bytes(b"")
        message_file.chmod(0o666)
        sandbox = await configure(self.site, self.spec, image, gpus=gpus, message_file=message_file)
        if self._stopping.is_set():
            return
        self._forget(number - 2)
        # The status file belongs to the attempt: an old one would tell of another.
        (self.folder / f"{number}.status").unlink(missing_ok=True)
        record = Record(
            number=number,
            gpus=gpus,
            previous=_last_exit(before, waiting=True),
            environment=dict(sandbox.environment),
            workdir=sandbox.workdir,
        )
        await self._begin(record, sandbox)

    async def _begin(self, record: Record, sandbox: Sandbox) -> None:
        self.started.clear()
        # Noted before it is done: an agent that dies in between finds the process by its name.
        self._keep(record)
        status = self.folder / f"{record.number}.status"
        try:
            launched = await launch.launch(
                self.site.settings.bwrap,
                bwrap_options(sandbox),
                sandbox.command,
                name=self.process_name,
                log=self.log_file(record.number),
                status=status,
            )
        except ClusterError as error:
            raise ConfigError(str(error)) from error
        self._keep(dataclasses.replace(record, launched=launched))
        self._waiting = None
        self.site.changed()

    def _keep(self, record: Record) -> None:
        write_record(self.folder / "record.json", record)
        self.record = record

    def _forget(self, number: int) -> None:
        for ending in ("log", "status", "message"):
            (self.folder / f"{number}.{ending}").unlink(missing_ok=True)

    async def _attend(self) -> None:
        """Stay with a running attempt, begun by this agent or an earlier one, until it ends."""
        record = self.record
        if record is None or record.launched is None:
            return
        self._attempt = Attempt(
            self.site, self.spec, record, record.launched, adopted=not self._fresh
        )
        relay = asyncio.create_task(self._relay_start(self._attempt))
        if self._stopping.is_set():
            # Told to stop while the process was being started.
            self._ending = asyncio.create_task(self._attempt.terminate(self._deadline))
        try:
            await self._attempt.attend()
        finally:
            relay.cancel()
        self._finish(self._attempt.reason)

    async def _relay_start(self, attempt: Attempt) -> None:
        await attempt.started.wait()
        self.started.set()

    def _finish(self, reason: str) -> None:
        """Note how the attempt ended; `reason` is why this node killed it, if it did."""
        record = self.record
        if record is None:
            return
        code = launch.exit_code(self.folder / f"{record.number}.status")
        log_file = self.log_file(record.number)
        failed = clean_start_error(log_file) if code is None else ""
        message = failed or termination_message(
            self.spec, self.folder / f"{record.number}.message", log_file, code
        )
        if failed:
            code, reason = 128, "StartError"
        else:
            # Without a code the whole container was killed together with its shim.
            code = 137 if code is None else code
            reason = reason or ("Completed" if code == 0 else "Error")
        ended = Exit(code, reason, record.started_at, now(), record.container_id, message)
        self._keep(dataclasses.replace(record, exit=ended))
        log.info(
            "container=%s pod=%s exit=%d reason=%s",
            self.name,
            self.site.full_name,
            code,
            reason,
        )
        self._attempt = None
        self.site.changed()

    async def stop(self, deadline: float) -> None:
        """Stop it for good, by `deadline` (monotonic seconds)."""
        self._deadline = deadline
        self._stopping.set()
        if self._attempt is not None:
            await self._attempt.terminate(deadline)

    def kill(self) -> None:
        """SIGKILL it for good, at once."""
        self._stopping.set()
        if self._attempt is not None:
            self._attempt.kill()

    async def _pause(self, seconds: float) -> bool:
        """Wait, or be told to stop: then True."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _back_off(self, ended: Exit) -> bool:
        """Wait as long as the restart count asks for; False when it is to stop instead."""
        number = self.record.number if self.record else 0
        ran_s = age_s(ended.started_at) - age_s(ended.finished_at)
        if number == 0 or ran_s > _HEALTHY_S:
            return not await self._pause(0.1)
        settings = self.site.settings
        delay = min(settings.backoff_base_s * 2.0 ** min(number - 1, 20), settings.backoff_cap_s)
        told = f"back-off {delay:g}s restarting failed container={self.name} pod="
        self.wait_for("CrashLoopBackOff", told + self.site.full_name)
        self.site.events.tell(
            self.site.pod,
            "BackOff",
            f"Back-off restarting failed container {self.name}",
            warning=True,
        )
        return not await self._pause(max(0.0, delay - age_s(ended.finished_at)))


def _last_exit(record: Record | None, *, waiting: bool) -> Exit | None:
    """The exit that `lastState` tells: of the attempt before the one that the state tells."""
    if record is None:
        return None
    return record.exit or record.previous if waiting else record.previous
