"""A worker's newest reading in the text format of Prometheus; it must not know HTTP."""

from __future__ import annotations

from collections.abc import Iterable

from kubebooth_api.runs import WorkerStatus
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector


class _Reading(Collector):
    def __init__(self, status: WorkerStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        progress = self._status.progress
        readings: tuple[tuple[str, str, float | None], ...] = (
            ("step", "Units of the stage that are done.", progress.step),
            ("total_steps", "Units of the stage in all.", progress.total_steps),
            ("percentage", "Share of the session's work that is done.", progress.percentage),
            ("loss", "Smoothed training loss.", progress.loss),
            ("learning_rate", "Current learning rate.", progress.learning_rate),
            ("images_per_second", "Training pictures per second.", progress.images_per_second),
            (
                "remaining_seconds",
                "Seconds until the worker is done, at the current speed.",
                progress.estimated_remaining_seconds,
            ),
            (
                "updated_timestamp_seconds",
                "When the reading was taken.",
                progress.updated_at.timestamp(),
            ),
        )
        for name, told, value in readings:
            if value is None:
                continue
            gauge = GaugeMetricFamily(f"kubebooth_worker_{name}", told, labels=["stage"])
            gauge.add_metric([progress.stage], value)
            yield gauge


def as_prometheus(status: WorkerStatus) -> tuple[bytes, str]:
    """The body and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Reading(status))
    return generate_latest(registry), CONTENT_TYPE_LATEST
