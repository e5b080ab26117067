"""When full lists are made: at first, now and then, and when a stream has started anew."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from kubebooth_operator.cache import Cache
from kubebooth_operator.client import Client
from kubebooth_operator.cluster import Cluster
from kubebooth_operator.doors import Key
from kubebooth_operator.errors import ApiError
from kubebooth_operator.logs import fields
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.resources import Resource
from kubebooth_operator.resync import resync

logger = logging.getLogger(__name__)

RELIST_PAUSE_S = 3.0
"""A stream that lists its objects is given so long without news before it is compared."""
_LOOK_S = 0.5
_STAGNANT_S = 3.0
_RETRY_S = 5.0
_DEAF_AFTER = 3


async def while_it_falls(count: Callable[[], int]) -> None:
    """Patience with streams that still deliver: until nothing is missing or nothing comes."""
    least, since_s = count(), 0.0
    while least and since_s < _STAGNANT_S:
        await asyncio.sleep(_LOOK_S)
        now = count()
        since_s = 0.0 if now < least else since_s + _LOOK_S
        least = min(least, now)


class Lister:
    """Keeps the cache true against full lists."""

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        cache: Cache,
        metrics: Metrics,
        *,
        resources: Iterable[Resource],
        namespaces: Sequence[str],
        interval_s: float,
        found: Callable[[Iterable[Key]], None],
    ) -> None:
        """`found` is told the keys for which a list made a difference."""
        self._client = client
        self._cluster = cluster
        self._cache = cache
        self._metrics = metrics
        self._resources = tuple(resources)
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._interval_s = interval_s
        self._found = found
        self._relisted: dict[Resource, float] = {}
        self._missed: dict[Resource, int] = {}
        self.synced = asyncio.Event()

    def relisted(self, resource: Resource) -> None:
        """A stream lists its objects: it may have missed deletions. Compare when it is done."""
        if self.synced.is_set():
            self._relisted[resource] = asyncio.get_running_loop().time()

    def deaf(self) -> str | None:
        """What is wrong with the streams: None, or whose news keep failing to come."""
        for resource, times in self._missed.items():
            if times >= _DEAF_AFTER:
                return f"the stream of {resource.plural} missed changes {times} times in a row"
        return None

    async def run(self) -> None:
        """Compare all resources, set `synced`, and go on for ever."""
        for resource in self._resources:
            await self._first(resource)
        self.synced.set()
        logger.info(
            "the cache is complete",
            extra=fields(objects={r.plural: self._cache.count(r) for r in self._resources}),
        )
        clock = asyncio.get_running_loop().time
        due = {resource: clock() + self._pause_s() for resource in self._resources}
        while True:
            await asyncio.sleep(min(1.0, self._interval_s / 10))
            for resource in self._resources:
                relisted = self._relisted.get(resource, float("inf"))
                if clock() < min(due[resource], relisted + RELIST_PAUSE_S):
                    continue
                self._relisted.pop(resource, None)
                done = await self.compare(resource)
                due[resource] = clock() + (self._pause_s() if done else _RETRY_S)

    async def _first(self, resource: Resource) -> None:
        while True:
            if await self.compare(resource, first=True):
                return
            await asyncio.sleep(_RETRY_S)

    async def compare(self, resource: Resource, *, first: bool = False) -> bool:
        """Compare one resource in all its namespaces. False when the server did not answer."""
        keys: set[Key] = set()
        try:
            for namespace in self._scopes:
                keys |= await resync(
                    self._client,
                    self._cluster,
                    self._cache,
                    resource,
                    namespace,
                    patience=while_it_falls,
                )
        except ApiError as error:
            self._metrics.resyncs.labels(resource.plural, "error").inc()
            logger.warning("%s cannot be listed: %s", resource.plural, error)
            return False
        finally:
            self._found(keys)
        self._metrics.resyncs.labels(resource.plural, "ok").inc()
        self._metrics.resync_differences.labels(resource.plural).inc(len(keys))
        if not first:
            self._missed[resource] = self._missed.get(resource, 0) + 1 if keys else 0
        if keys:
            logger.info(
                "a full list found what the stream had not told",
                extra=fields(resource=resource.plural, keys=len(keys)),
            )
        return True

    def _pause_s(self) -> float:
        # Jitter, so that replicas and resources do not all list at once.
        return self._interval_s * (0.9 + 0.2 * random.random())
