"""Binds the parts to one running operator; the only place that knows them all."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from kubebooth_operator import server, watch
from kubebooth_operator.cache import Cache
from kubebooth_operator.cluster import Cluster
from kubebooth_operator.doors import Event, Key, Manifest
from kubebooth_operator.errors import ApiError
from kubebooth_operator.fence import Fence
from kubebooth_operator.http import HttpClient
from kubebooth_operator.intake import Intake
from kubebooth_operator.kinds import Kinds, plurals
from kubebooth_operator.lease import Alone, Elector, unique
from kubebooth_operator.listing import Lister
from kubebooth_operator.login import Login
from kubebooth_operator.logs import fields
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.progress import Poller
from kubebooth_operator.queue import WorkQueue
from kubebooth_operator.reading import newest_worker
from kubebooth_operator.reconcile import Reconciler
from kubebooth_operator.recorder import Recorder
from kubebooth_operator.resources import API_VERSION, JOBS, PODS, Resource, Resources, controller
from kubebooth_operator.settings import Settings
from kubebooth_operator.workers import work

logger = logging.getLogger(__name__)

STUCK_S = 300.0
"""A reconcile takes seconds; every request in it has a time-out."""
_GRACE_S = 10.0


class Application:
    """One replica of the operator."""

    def __init__(
        self,
        settings: Settings,
        kinds: Kinds,
        login: Callable[[], Login],
        *,
        client_of: Callable[[Callable[[], Login], Metrics], HttpClient] = HttpClient,
    ) -> None:
        """`client_of` makes the client of everything but the streams."""
        self._settings = settings
        self._login = login
        self.metrics = metrics = Metrics()
        self.resources = resources = Resources(plurals(kinds))
        self.cache = cache = Cache(resources)
        self.client = client_of(login, metrics)
        self.queues = {plural: WorkQueue[Key](metrics=metrics.queue(plural)) for plural in kinds}
        self.elector = self._elector(settings)
        fenced = Fence(self.client, self.elector.leads)
        self.poller = Poller(self._worker, self._add, interval_s=settings.progress_interval_s)
        self.cluster = Cluster(fenced, cache, resources, worker=self.poller.said, wake=self._add)
        self.recorder = Recorder(fenced, metrics, identity=self.elector.identity)
        self.intake = Intake(cache, self.queues, metrics, relisted=self._relisted)
        self.lister = Lister(
            self.client,
            self.cluster,
            cache,
            metrics,
            resources=resources,
            namespaces=settings.watch_namespaces,
            interval_s=settings.resync_s,
            found=self.intake.add_all,
        )
        self.reconciler = Reconciler(self.cluster, kinds, self, now=lambda: datetime.now(UTC))
        self._stopping = asyncio.Event()
        self._stream_stop = asyncio.Event()
        metrics.watch_phases(self._phases)
        metrics.watch_busy({plural: queue.busy_s for plural, queue in self.queues.items()})

    def stop(self) -> None:
        """Finish what is being worked on, give the Lease back and end; call it in the loop."""
        self._stopping.set()

    # --- Witness ---------------------------------------------------------------------------

    def event(self, parent: Manifest, event: Event) -> None:
        """Tell of a change in the background."""
        self.recorder.record(parent, event)

    def poll(self, key: Key, *, wanted: bool) -> None:
        """Ask the worker of a key for its progress from now on, or no more."""
        self.poller.want(key, wanted=wanted)

    # --- running ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises what ended a part of it, such as `LeaseLost`."""
        settings = self._settings
        runner = await server.serve(
            listen=settings.listen,
            port=settings.port,
            healthy=self.healthy,
            ready=self.ready,
            metrics=self.metrics.text,
        )
        logger.info(
            "serving health and metrics", extra=fields(listen=settings.listen, port=settings.port)
        )
        try:
            await self._parts()
        finally:
            await self.elector.release()
            await self.client.close()
            await runner.cleanup()

    async def _parts(self) -> None:
        self._stop_on_signals()
        await self._until_stopped(self._kinds_served())
        if self._stopping.is_set():
            return
        started = asyncio.Event()
        # Made before the streams start: kopf ends every task that is younger than itself.
        parts = [
            asyncio.create_task(self.lister.run(), name="lists"),
            asyncio.create_task(self.poller.run(), name="progress"),
            asyncio.create_task(self.recorder.run(), name="events"),
            asyncio.create_task(self._lead(), name="work"),
            asyncio.create_task(self._stopping.wait(), name="signals"),
        ]
        parts.append(asyncio.create_task(self._stream(started), name="streams"))
        begun = asyncio.create_task(started.wait())
        await asyncio.wait((begun, parts[-1]), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        # kopf has put its own in their place.
        self._stop_on_signals()
        ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        await self._end(parts)
        for part in ended:
            part.result()

    async def _end(self, parts: Sequence[asyncio.Task[Any]]) -> None:
        """Finish what is being worked on, then stop everything."""
        self._stopping.set()
        names = {part.get_name(): part for part in parts}
        await asyncio.wait({names["work"]}, timeout=_GRACE_S)
        await self.elector.release()
        self._stream_stop.set()
        await asyncio.wait({names["streams"]}, timeout=_GRACE_S)
        for part in parts:
            part.cancel()
        await asyncio.wait(parts, timeout=_GRACE_S)

    async def _lead(self) -> None:
        """Wait until the cache is complete and the Lease is ours, then work."""
        await self._until_stopped(self._elected())
        if self._stopping.is_set():
            return
        self.metrics.leader.set(1)
        keeping = asyncio.create_task(self.elector.keep())
        crew = asyncio.create_task(self._crew())
        both: set[asyncio.Task[None]] = {keeping, crew}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
            await crew
        finally:
            self.metrics.leader.set(0)
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    async def _elected(self) -> None:
        await self.lister.synced.wait()
        await self.elector.acquire()

    async def _crew(self) -> None:
        """All workers, until they are told to stop."""
        async with asyncio.TaskGroup() as group:
            for queue in self.queues.values():
                for _ in range(self._settings.workers):
                    group.create_task(
                        work(
                            queue,
                            self.reconciler.reconcile,
                            self.metrics,
                            stopping=self._stopping,
                        )
                    )

    async def _stream(self, started: asyncio.Event) -> None:
        await watch.stream(
            self.resources,
            self.intake.event,
            login=self._login,
            namespaces=self._settings.watch_namespaces,
            started=started,
            stop=self._stream_stop,
        )

    async def _kinds_served(self) -> None:
        """Wait until the API server serves our kinds: streams of unknown kinds never start."""
        wanted = {resource.plural for resource in self.resources.custom}
        while True:
            try:
                missing = wanted - await self.client.served(API_VERSION)
            except ApiError as error:
                logger.warning("the API server is not there: %s", error)
            else:
                if not missing:
                    return
                logger.warning(
                    "the API server does not serve our kinds yet; install the CRDs of the chart",
                    extra=fields(missing=sorted(missing)),
                )
            await asyncio.sleep(2)

    async def _until_stopped(self, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(part)
        stop = asyncio.create_task(self._stopping.wait())
        both: set[asyncio.Task[Any]] = {task, stop}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
        task.cancel()

    def _stop_on_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    # --- what others ask ---------------------------------------------------------------------

    def healthy(self) -> str | None:
        """What is wrong so that only a restart helps; None when nothing is."""
        for plural, queue in self.queues.items():
            longest_s = max(queue.busy_s(), default=0.0)
            if longest_s > STUCK_S:
                return f"a worker of {plural} has been busy for {longest_s:.0f} s"
        return self.lister.deaf()

    def ready(self) -> str | None:
        """None once the cache is complete, whether or not this replica leads."""
        return None if self.lister.synced.is_set() else "the cache is not complete yet"

    def _worker(self, key: Key) -> tuple[str, str] | None:
        resource, name = self.resources.parent(key.plural), (key.namespace, key.name)
        parent = self.cache.entry(resource, name)
        if parent is None:
            return None
        children = self.cache.children(resource, parent.uid, name)
        jobs = {body["metadata"]["uid"] for kind, body in children if kind == JOBS}
        return newest_worker(
            body
            for kind, body in children
            if kind == PODS
            and (controller(body["metadata"].get("ownerReferences")) or {}).get("uid") in jobs
        )

    def _phases(self) -> Iterator[tuple[str, str, int]]:
        for resource in self.resources.custom:
            for phase, count in self.cache.phases(resource.plural).items():
                yield resource.plural, phase, count

    def _add(self, key: Key) -> None:
        self.intake.add(key)

    def _relisted(self, resource: Resource) -> None:
        self.lister.relisted(resource)

    def _elector(self, settings: Settings) -> Elector | Alone:
        if not settings.leader_elect:
            return Alone()
        return Elector(
            self.client,
            namespace=settings.namespace,
            identity=unique(settings.identity, default=Settings().identity),
            duration_s=settings.lease_duration_s,
        )
