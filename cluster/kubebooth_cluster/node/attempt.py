"""One running attempt of a container: probed, held to its memory, and ended when asked.

It must not know whether another attempt follows.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any

from kubebooth_cluster.node import launch, memory, probes
from kubebooth_cluster.node.quantities import parse_quantity
from kubebooth_cluster.node.records import Record
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.node.site import Site

log = logging.getLogger("kubebooth.node")

_MIN_GRACE_S = 2.0
_HOOK_S = 600


class Attempt:
    """A running process with its probes; `attend` lasts as long as the process does.

    `started` is set once the startup probe is content, `ready` follows the readiness
    probe, and `reason` says why this node killed it, if it did.
    """

    def __init__(
        self, site: Site, spec: Object, record: Record, launched: launch.Launched, *, adopted: bool
    ) -> None:
        """`adopted` says that an earlier agent began it, and asked its postStart hook."""
        self.started = asyncio.Event()
        self.ready = False
        self.reason = ""
        self.launched = launched
        self._site = site
        self._spec = spec
        self._record = record
        self._adopted = adopted
        self._killing: asyncio.Task[None] | None = None

    async def attend(self) -> None:
        """Stay with it until it ends."""
        helpers = [asyncio.create_task(job) for job in self._helpers()]
        try:
            await launch.ended(self.launched.monitor)
            # bwrap itself may have been killed: then its container must not go on alone.
            launch.signal_container(self.launched, signal.SIGKILL)
            await launch.ended(self.launched.child)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self.ready = False

    def _helpers(self) -> list[Coroutine[Any, Any, None]]:
        jobs = [self._probe()]
        limits = (self._spec.get("resources") or {}).get("limits") or {}
        if "memory" in limits:
            jobs.append(self._guard_memory(limit_bytes=int(parse_quantity(limits["memory"]))))
        return jobs

    async def _guard_memory(self, *, limit_bytes: int) -> None:
        await memory.exceeded(self.launched.child, limit_bytes=limit_bytes)
        self.reason = "OOMKilled"
        launch.signal_container(self.launched, signal.SIGKILL)

    def _target(self) -> probes.Target:
        return probes.Target(
            ip=self._site.facts.ip,
            child=self.launched.child,
            environment=self._record.environment,
            workdir=self._record.workdir,
            ports=self._spec.get("ports") or (),
        )

    async def _probe(self) -> None:
        if not self._adopted and not await self._hook("postStart"):
            self._end_by(time.monotonic() + _MIN_GRACE_S)
            return
        if "startupProbe" in self._spec:
            await probes.follow(self._spec["startupProbe"], self._target, self._on_startup)
            if not self.started.is_set():
                return
        self.started.set()
        self.ready = "readinessProbe" not in self._spec
        self._site.changed()
        answers = {"livenessProbe": self._on_liveness, "readinessProbe": self._on_readiness}
        loops = [
            probes.follow(self._spec[name], self._target, answer)
            for name, answer in answers.items()
            if name in self._spec
        ]
        await asyncio.gather(*loops)

    async def _on_startup(self, ok: bool, message: str) -> bool:
        if ok:
            self.started.set()
            return True
        return self._unhealthy("Startup", self._spec["startupProbe"], message)

    async def _on_liveness(self, ok: bool, message: str) -> bool:
        return not ok and self._unhealthy("Liveness", self._spec["livenessProbe"], message)

    async def _on_readiness(self, ok: bool, message: str) -> bool:
        if not ok:
            self._warn("Unhealthy", f"Readiness probe failed: {message}")
        if ok != self.ready:
            self.ready = ok
            self._site.changed()
        return False

    def _warn(self, reason: str, message: str) -> None:
        self._site.events.tell(self._site.pod, reason, message, warning=True)

    def _unhealthy(self, kind: str, probe: Object, message: str) -> bool:
        """End the attempt that failed a probe; the restart policy does the rest."""
        self._warn("Unhealthy", f"{kind} probe failed: {message}")
        grace_s = self._site.pod["spec"].get("terminationGracePeriodSeconds", 30)
        self._end_by(time.monotonic() + probe.get("terminationGracePeriodSeconds", grace_s))
        return True

    def _end_by(self, deadline: float) -> None:
        # Not awaited: the end of the process cancels the task that asks the probes.
        self._killing = asyncio.create_task(self.terminate(deadline))

    async def _hook(self, name: str) -> bool:
        """Do a lifecycle hook, if there is one; whether it went well."""
        action = (self._spec.get("lifecycle") or {}).get(name)
        if action is None:
            return True
        ok, message = await probes.ask(action, self._target(), timeout_s=_HOOK_S)
        if not ok:
            spelled = f"{name[0].upper()}{name[1:]}"
            self._warn(f"Failed{spelled}Hook", f"{spelled}Hook failed: {message}")
        return ok

    async def terminate(self, deadline: float) -> None:
        """preStop, SIGTERM, and SIGKILL at the deadline (monotonic seconds)."""
        told = f"Stopping container {self._spec['name']}"
        self._site.events.tell(self._site.pod, "Killing", told)
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                await self._hook("preStop")
        except TimeoutError:
            log.info("preStop of container=%s took all of the grace period", self._spec["name"])
            # As a kubelet does, so that the process still hears of its end.
            deadline = time.monotonic() + _MIN_GRACE_S
        launch.signal_container(self.launched, self._stop_signal())
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                await launch.ended(self.launched.child)
        except TimeoutError:
            self.kill()

    def _stop_signal(self) -> signal.Signals:
        return signal.Signals[(self._spec.get("lifecycle") or {}).get("stopSignal") or "SIGTERM"]

    def kill(self) -> None:
        """SIGKILL it and everything it started."""
        launch.signal_container(self.launched, signal.SIGKILL)


def _loop_time(deadline: float) -> float:
    return deadline - time.monotonic() + asyncio.get_running_loop().time()
