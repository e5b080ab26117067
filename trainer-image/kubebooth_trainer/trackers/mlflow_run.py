"""Follows a run on an MLflow tracking server, through MLflow's own client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from kubebooth_trainer.trackers.lines import Opening, Picture, Scalars

TAG = "kubebooth.run"
MOST_AT_ONCE, LONGEST_WAIT_S = 200, 5.0
LONGEST_VALUE = 500


class MlflowRun:
    """One run on the server; the run of an earlier attempt is continued, and nothing is doubled."""

    def __init__(self, opening: Opening) -> None:
        self._client = MlflowClient(tracking_uri=opening.place)
        experiment = self._experiment(opening.project)
        found = self._client.search_runs(
            [experiment], filter_string=f"tags.`{TAG}` = '{opening.run}'", max_results=1
        )
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {TAG: opening.run}
            created = self._client.create_run(experiment, run_name=opening.name, tags=tags)
            self._id = created.info.run_id
        settings = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in opening.settings.items()]
        for start in range(0, len(settings), 100):
            self._client.log_batch(self._id, params=settings[start : start + 100])
        self._last = {
            name: self._last_step(name) for name in (found[0].data.metrics if found else ())
        }
        self._pending: list[Metric] = []
        self._sent_at = time.monotonic()

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else str(self._client.create_experiment(name))

    def _last_step(self, name: str) -> int:
        return max((m.step for m in self._client.get_metric_history(self._id, name)), default=-1)

    def scalars(self, line: Scalars) -> None:
        """Collect readings, and send them now and then."""
        self._pending += [
            Metric(name, value, line.time_ms, line.step)
            for name, value in line.values.items()
            if line.step > self._last.get(name, -1)
        ]
        if len(self._pending) >= MOST_AT_ONCE or time.monotonic() - self._sent_at > LONGEST_WAIT_S:
            self._send()

    def picture(self, line: Picture) -> None:
        """Send a sheet."""
        self._send()
        self._client.log_artifact(self._id, line.path, artifact_path="samples")

    def close(self) -> None:
        """Send what is left."""
        self._send()
        self._client.set_terminated(self._id, status="FINISHED")

    def _send(self) -> None:
        for batch in _cut(self._pending):
            self._client.log_batch(self._id, metrics=batch)
        self._pending, self._sent_at = [], time.monotonic()


def _cut(metrics: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(metrics), MOST_AT_ONCE):
        yield metrics[start : start + MOST_AT_ONCE]
