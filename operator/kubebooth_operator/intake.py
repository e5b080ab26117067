"""Where news arrives: into the cache, and the key into its queue. It decides and asks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubebooth_operator.cache import Cache
from kubebooth_operator.doors import Key
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.queue import WorkQueue
from kubebooth_operator.resources import Resource

Queues = Mapping[str, WorkQueue[Key]]
"""One work queue per kind, by plural."""


class Intake:
    """Receives events of the streams and keys of everybody else."""

    def __init__(
        self,
        cache: Cache,
        queues: Queues,
        metrics: Metrics,
        *,
        relisted: Callable[[Resource], None] = lambda resource: None,
    ) -> None:
        """`relisted` is told when a stream lists its objects (again): it may have missed some."""
        self._cache = cache
        self._queues = queues
        self._metrics = metrics
        self._relisted = relisted

    def event(self, resource: Resource, type_: str | None, body: Mapping[str, Any]) -> None:
        """One event of a stream; `type_` is None while the stream lists what is there."""
        self._metrics.watch_events.labels(resource.plural).inc()
        metadata = body["metadata"]
        # Asked before a drop: the way from a pod to its parent leads through its Job.
        keys = self._cache.concerned(resource, body)
        if type_ == "DELETED":
            name = (metadata["namespace"], metadata["name"])
            uid, version = metadata["uid"], metadata.get("resourceVersion")
            changed = self._cache.drop(resource, name, uid=uid, version=version)
        else:
            changed = self._cache.put(resource, body)
        if changed:
            self.add_all(keys)
        if type_ is None:
            self._relisted(resource)

    def add(self, key: Key) -> None:
        """Reconcile a key soon."""
        queue = self._queues.get(key.plural)
        if queue is not None:
            queue.add(key)

    def add_all(self, keys: Iterable[Key]) -> None:
        """Reconcile keys soon."""
        for key in keys:
            self.add(key)
