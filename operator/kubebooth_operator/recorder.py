"""Kubernetes events about our objects, sent in the background; equal ones are counted, not
repeated. Nobody ever waits for an event, and a lost one loses nothing but itself."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kubebooth_api.digests import digest_json, short

from kubebooth_operator.client import Client, Json
from kubebooth_operator.doors import Event, Manifest
from kubebooth_operator.errors import ApiError, NotFound
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.resources import EVENTS

logger = logging.getLogger(__name__)

COMPONENT = "kubebooth-operator"
_MOST_WAITING = 4000
_LANES = 4
_MOST_SERIES = 4096
_SERIES_S = 600.0


@dataclass
class _Series:
    name: str
    count: int
    last_s: float


class Recorder:
    """Sends events, those of one object one after the other."""

    def __init__(
        self,
        client: Client,
        metrics: Metrics,
        *,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._identity = identity
        self._clock = clock
        self._process = uuid.uuid4().hex[:8]
        self._lanes: list[asyncio.Queue[tuple[Manifest, Event]]] = [
            asyncio.Queue(_MOST_WAITING // _LANES) for _ in range(_LANES)
        ]
        self._series: OrderedDict[str, _Series] = OrderedDict()

    def record(self, parent: Manifest, event: Event) -> None:
        """Send an event soon; it is dropped when too many wait already."""
        slim = {k: parent[k] for k in ("apiVersion", "kind")} | {"metadata": parent["metadata"]}
        try:
            # One object's events stay in one lane: they are told in order and counted once.
            self._lanes[hash(parent["metadata"]["uid"]) % _LANES].put_nowait((slim, event))
        except asyncio.QueueFull:
            self._metrics.events_dropped.inc()

    async def run(self) -> None:
        """Send for ever."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run(lane))

    async def _run(self, lane: asyncio.Queue[tuple[Manifest, Event]]) -> None:
        while True:
            parent, event = await lane.get()
            try:
                await self.send(parent, event)
            except ApiError as error:
                self._metrics.events_dropped.inc()
                logger.debug("an event was not sent: %s", error)

    async def send(self, parent: Manifest, event: Event) -> None:
        """Send one event, as the next of its series if it has one. Raises `ApiError`."""
        metadata = parent["metadata"]
        digest = digest_json([metadata["uid"], event.type, event.reason, event.message])
        series = self._series.pop(digest, None)
        now = self._clock()
        if series is not None and now - series.last_s < _SERIES_S:
            try:
                await self._repeat(metadata["namespace"], series)
            except NotFound:
                series = None
        else:
            series = None
        if series is None:
            series = _Series(f"{metadata['name'][:200]}.{short(digest)}.{self._process}", 1, now)
            series.name = f"{series.name}{uuid.uuid4().hex[:4]}"
            body = self._body(parent, event, series.name)
            await self._client.create(EVENTS, metadata["namespace"], body)
        series.last_s = now
        self._series[digest] = series
        if len(self._series) > _MOST_SERIES:
            self._series.popitem(last=False)

    async def _repeat(self, namespace: str, series: _Series) -> None:
        series.count += 1
        patch = {"count": series.count, "lastTimestamp": _now()}
        await self._client.merge(EVENTS, namespace, series.name, patch)

    def _body(self, parent: Manifest, event: Event, name: str) -> Json:
        metadata, now = parent["metadata"], _now()
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": parent["apiVersion"],
                "kind": parent["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "reason": event.reason[:128],
            "message": event.message[:1024],
            "type": event.type,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity[:128],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
