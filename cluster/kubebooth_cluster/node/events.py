"""Kubernetes Events about pods, best effort: losing one never stops anything."""

import asyncio
import logging
import time
import uuid

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.node.kube import Kube, Unreachable
from kubebooth_cluster.node.settings import Object, now

log = logging.getLogger("kubebooth.node")

_KEPT = 2000
_QUIET_S = 10.0


class Events:
    """Posts events in the background; one that was posted before only counts up."""

    def __init__(self, kube: Kube, *, node_name: str) -> None:
        self._kube = kube
        self._source = {"component": "kubelet", "host": node_name}
        self._posted: dict[tuple[str, str, str], tuple[str, int]] = {}
        self._times: dict[tuple[str, str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, pod: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Tell of something that happened to a pod."""
        task = asyncio.create_task(self._post(pod, reason, message[:1000], warning=warning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, pod: Object, reason: str, message: str, *, warning: bool) -> None:
        metadata = pod["metadata"]
        key = (metadata["uid"], reason, message)
        where = f"/api/v1/namespaces/{metadata['namespace']}/events"
        moment = time.monotonic()
        if moment - self._times.get(key, -_QUIET_S) < _QUIET_S:
            return
        self._times[key] = moment
        try:
            if key in self._posted:
                name, count = self._posted[key]
                self._posted[key] = (name, count + 1)
                body: Object = {"count": count + 1, "lastTimestamp": now()}
                await self._kube.merge(f"{where}/{name}", body)
                return
            if len(self._posted) > _KEPT:
                self._posted.clear()
                self._times.clear()
            name = f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}"
            self._posted[key] = (name, 1)
            event = self._event(metadata, name, reason, message)
            await self._kube.post(where, event | {"type": "Warning" if warning else "Normal"})
        except (ApiError, Unreachable) as error:
            log.info("event lost reason=%s error=%s", reason, error)

    def _event(self, metadata: Object, name: str, reason: str, message: str) -> Object:
        return {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message,
            "source": self._source,
            "reportingComponent": "kubelet",
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
