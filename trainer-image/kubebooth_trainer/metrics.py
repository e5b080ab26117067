"""A worker's newest reading in the text format of Prometheus; it must not know HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kubebooth_api.runs import WorkerStatus
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector


class _Reading(Collector):
    def __init__(self, status: WorkerStatus, accelerator_bytes: int | None) -> None:
        self._status, self._accelerator_bytes = status, accelerator_bytes

    def collect(self) -> Iterable[Metric]:
        progress = self._status.progress
        readings: tuple[tuple[str, str, float | None], ...] = (
            ("step", "Units of the stage that are done.", progress.step),
            ("total_steps", "Units of the stage in all.", progress.total_steps),
            ("percentage", "Share of the session's work that is done.", progress.percentage),
            ("loss", "Smoothed training loss.", progress.loss),
            (
                "validation_loss",
                "Newest loss on held-out pictures with fixed noise and timesteps.",
                progress.validation_loss,
            ),
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
        for name, told, value in (*readings, *self._memory()):
            if value is None:
                continue
            gauge = GaugeMetricFamily(f"kubebooth_worker_{name}", told, labels=["stage"])
            gauge.add_metric([progress.stage], value)
            yield gauge

    def _memory(self) -> Iterable[tuple[str, str, float | None]]:
        resident, peak = resident_bytes()
        yield "memory_bytes", "Resident host memory of the worker.", resident
        yield "memory_peak_bytes", "Most resident host memory so far.", peak
        used = self._accelerator_bytes
        yield "accelerator_memory_peak_bytes", "Most accelerator memory so far.", used


def resident_bytes() -> tuple[int | None, int | None]:
    """Present and greatest resident memory of this process, where the kernel tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None, None
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    present, most = (int(told[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return present, most


def as_prometheus(
    status: WorkerStatus, *, accelerator_bytes: int | None = None
) -> tuple[bytes, str]:
    """The body and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Reading(status, accelerator_bytes))
    return generate_latest(registry), CONTENT_TYPE_LATEST
