"""Every metric of the operator, in a registry of its own; it measures nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_QUEUE_BUCKETS = (0.0001, 0.001, 0.01, 0.1, 1, 10, 60, 300, 1800)
_RECONCILE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """Names and labels of all metrics."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        queue = ["name"]
        self.queue_depth = Gauge(
            "workqueue_depth", "Keys that wait for a worker.", queue, registry=registry
        )
        self.queue_adds = Counter(
            "workqueue_adds", "Keys added to the queue.", queue, registry=registry
        )
        self.queue_waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Seconds that a key waited for a worker.",
            queue,
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.queue_worked = Histogram(
            "workqueue_work_duration_seconds",
            "Seconds that a worker was busy with a key.",
            queue,
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.queue_retries = Counter(
            "workqueue_retries", "Keys added again after a failure.", queue, registry=registry
        )
        self.reconciles = Counter(
            "kubebooth_reconcile", "Reconciles by result.", ["kind", "result"], registry=registry
        )
        self.reconcile_seconds = Histogram(
            "kubebooth_reconcile_duration_seconds",
            "Seconds of one reconcile.",
            ["kind"],
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self.requests = Counter(
            "kubebooth_api_requests",
            "Requests to the API server, without watches; code 0 is no answer.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.status_writes = Counter(
            "kubebooth_status_writes",
            "Status writes that changed something.",
            ["kind"],
            registry=registry,
        )
        self.watch_events = Counter(
            "kubebooth_watch_events", "Events received.", ["resource"], registry=registry
        )
        self.resyncs = Counter(
            "kubebooth_resyncs",
            "Full lists compared with the cache.",
            ["resource", "result"],
            registry=registry,
        )
        self.resync_differences = Counter(
            "kubebooth_resync_differences",
            "Objects that streams had not told of.",
            ["resource"],
            registry=registry,
        )
        self.events_dropped = Counter(
            "kubebooth_events_dropped", "Kubernetes events not sent.", registry=registry
        )
        self.leader = Gauge("kubebooth_leader", "1 while this replica leads.", registry=registry)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def queue(self, name: str) -> NamedQueue:
        """Receiver of what happens in one work queue."""
        return NamedQueue(self, name)

    def watch_busy(self, busy: Mapping[str, Callable[[], list[float]]]) -> None:
        """Show for how long the workers of each queue have been busy, read at each scrape."""
        self.registry.register(_Busy(busy))

    def watch_phases(self, phases: Callable[[], Iterable[tuple[str, str, int]]]) -> None:
        """Show how many objects print each phase: `(plural, phase, count)`, read at each scrape."""
        self.registry.register(_Phases(phases))


class NamedQueue:
    """Counts what happens in one work queue under client-go's names."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._depth = metrics.queue_depth.labels(name)
        self._adds = metrics.queue_adds.labels(name)
        self._waited = metrics.queue_waited.labels(name)
        self._worked = metrics.queue_worked.labels(name)
        self._retries = metrics.queue_retries.labels(name)

    def added(self, depth: int) -> None:
        """A key was added."""
        self._adds.inc()
        self._depth.set(depth)

    def started(self, depth: int, waited_s: float) -> None:
        """A worker took a key."""
        self._depth.set(depth)
        self._waited.observe(waited_s)

    def finished(self, worked_s: float) -> None:
        """A worker is done with a key."""
        self._worked.observe(worked_s)

    def retried(self) -> None:
        """A key was added after a failure."""
        self._retries.inc()


class _Busy(Collector):
    def __init__(self, busy: Mapping[str, Callable[[], list[float]]]) -> None:
        self._busy = busy

    def collect(self) -> Iterator[Metric]:
        unfinished = GaugeMetricFamily(
            "workqueue_unfinished_work_seconds",
            "Seconds of work in progress that work_duration does not know of yet.",
            labels=["name"],
        )
        longest = GaugeMetricFamily(
            "workqueue_longest_running_processor_seconds",
            "For how many seconds the longest busy worker has been busy.",
            labels=["name"],
        )
        for name, busy in self._busy.items():
            seconds = busy()
            unfinished.add_metric([name], sum(seconds))
            longest.add_metric([name], max(seconds, default=0.0))
        yield unfinished
        yield longest


class _Phases(Collector):
    def __init__(self, phases: Callable[[], Iterable[tuple[str, str, int]]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "kubebooth_sessions", "Objects by printed phase.", labels=["resource", "phase"]
        )
        for plural, phase, count in self._phases():
            family.add_metric([plural, phase or "New"], count)
        yield family


def stopwatch() -> Callable[[], float]:
    """A function that gives the seconds since now."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began
