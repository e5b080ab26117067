"""How far a worker is: one object that stages write to and the progress server reads."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from kubebooth_api.artifacts import Checkpoint
from kubebooth_api.runs import WorkerStatus
from kubebooth_api.v1alpha1.session import Progress


class Reporter:
    """Remembers the newest reading. Thread-safe; `stop` asks the stages to end soon."""

    def __init__(self, *, first_stage: str) -> None:
        self.stop = threading.Event()
        """Set by SIGTERM: finish the step, save, end as preempted."""
        self.accelerator_bytes: int | None = None
        """Most accelerator memory so far; None where there is no accelerator."""
        self._lock = threading.Lock()
        self._status = WorkerStatus(
            progress=Progress(
                stage=first_stage, step=0, total_steps=0, percentage=0, updated_at=_now()
            )
        )

    @property
    def status(self) -> WorkerStatus:
        """The newest reading."""
        with self._lock:
            return self._status

    def advance(
        self,
        stage: str,
        step: int,
        total_steps: int,
        *,
        percentage: int,
        remaining_s: int | None = None,
        loss: float | None = None,
        learning_rate: float | None = None,
        images_per_second: float | None = None,
        validation_loss: float | None = None,
    ) -> None:
        """Tell a stage's position; see `Progress` for the units."""
        progress = Progress(
            stage=stage,
            step=step,
            total_steps=total_steps,
            percentage=percentage,
            estimated_remaining_seconds=remaining_s,
            loss=loss,
            learning_rate=learning_rate,
            images_per_second=images_per_second,
            validation_loss=validation_loss,
            updated_at=_now(),
        )
        self._change(progress=progress)

    def saved(self, checkpoint: Checkpoint) -> None:
        """Tell that a checkpoint is durable."""
        self._change(checkpoint=checkpoint)

    def painted(self, uri: str) -> None:
        """Tell where the newest sample picture is."""
        self._change(samples=uri)

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._status = self._status.model_copy(update=changes)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
