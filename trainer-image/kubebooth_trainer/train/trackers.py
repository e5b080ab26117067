"""Shows a run to whoever follows it: TensorBoard files in the store, MLflow, Weights & Biases.

Training only hands over; a thread writes files, processes of their own talk to servers, and what
goes wrong there is told once and changes nothing here.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from kubebooth_api import layout
from kubebooth_api.runs import TrainRun, token_variable
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_store import Store, StoreError
from PIL import Image

from kubebooth_trainer.text import clipped
from kubebooth_trainer.trackers.lines import Opening, Picture, Scalars
from kubebooth_trainer.trackers.process import TrackerProcess
from kubebooth_trainer.train.record import Point, Record
from kubebooth_trainer.train.samples import CONTACT_SHEET, samples_prefix
from kubebooth_trainer.train.stages import Stage
from kubebooth_trainer.train.tensorboard import (
    event_file,
    file_name,
    picture_event,
    scalar_events,
)

log = logging.getLogger(__name__)
LAST_WORDS_S = 10.0
"""Time that a tracker has for what is left when the run ends or is stopped."""
MOST_SHEET_BYTES = 64 << 20


class Trackers:
    """All followers of one run. A context manager: leaving it gives them a last moment."""

    def __init__(
        self, run: TrainRun, stages: tuple[Stage, ...], *, store: Store, folder: Path
    ) -> None:
        self._run, self._stages, self._store, self._folder = run, stages, store, folder
        before = accumulate((stage.steps for stage in stages), initial=0)
        self._offsets: Mapping[str, int] = {s.name: n for s, n in zip(stages, before, strict=False)}
        session = layout.session(run.session.namespace, run.session.name)
        self._prefix = layout.tensorboard(layout.run(session, run.digest))
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self._writing: Future[None] | None = None
        self._notes: list[str] = []
        self._processes = _processes(run, folder, self._notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be shown, in words."""
        failed = [process.note for process in self._processes if process.note]
        return tuple(dict.fromkeys([*self._notes, *failed]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was handed over; may be called twice."""
        self._writer.shutdown(wait=True)
        end = time.monotonic() + LAST_WORDS_S
        for process in self._processes:
            process.close(wait_s=max(1.0, end - time.monotonic()))

    def told(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Pass on readings after an update."""
        place, now_ms = self._offsets[stage] + step, int(time.time() * 1000)
        for process in self._processes:
            process.tell(Scalars(step=place, time_ms=now_ms, values=values))

    def painted(self, stage: str, step: int) -> None:
        """Pass on the contact sheet of a step, which stands in the store."""
        if self._run.trackers.tensor_board or self._processes:
            self._writer.submit(self._show, stage, step)

    def saved(self, record: Record) -> None:
        """Write the TensorBoard files anew, unless the last writing is not done yet."""
        if not self._run.trackers.tensor_board:
            return
        if self._writing is None or self._writing.done():
            self._writing = self._writer.submit(
                self._write_scalars, record.points, record.validations
            )

    def finish(self, record: Record) -> None:
        """Leave whole TensorBoard files, also of what an earlier attempt did not get to write."""
        if not self._run.trackers.tensor_board:
            return
        last = self._stages[-1]
        every = self._run.samples.every_steps
        steps = range(every, last.steps, every) if every and last.name == "Denoiser" else ()
        for step in (*steps, last.steps):
            self._writer.submit(self._show_missing, last.name, step)
        failure = self._writer.submit(
            self._write_scalars, record.points, record.validations
        ).exception()
        if failure is not None:
            self._failed(failure)

    def _write_scalars(self, points: tuple[Point, ...], measured: tuple[Point, ...]) -> None:
        try:
            for name, some, rates in (("training", points, True), ("validation", measured, False)):
                if some:
                    events = scalar_events(some, offsets=self._offsets, rates=rates)
                    self._put(f"{self._prefix}/{name}/{file_name(0)}", event_file(
                        events, self._folder / "events"
                    ))  # fmt: skip
        except (StoreError, OSError) as error:
            self._failed(error)

    def _show_missing(self, stage: str, step: int) -> None:
        try:
            if self._store.stat(self._sheet_key(stage, step)) is None:
                self._show(stage, step, processes=False)
        except StoreError as error:
            self._failed(error)

    def _show(self, stage: str, step: int, *, processes: bool = True) -> None:
        key = f"{samples_prefix(self._run, stage, step)}/{CONTACT_SHEET}"
        place = self._offsets[stage] + step
        try:
            if self._store.stat(key) is None:
                return
            png = self._store.read(key, max_bytes=MOST_SHEET_BYTES)
            if self._run.trackers.tensor_board:
                width, height = Image.open(io.BytesIO(png)).size
                event = picture_event(png, width=width, height=height, step=place)
                data = event_file([event], self._folder / "events")
                self._put(self._sheet_key(stage, step), data)
            for process in self._processes if processes else ():
                path = self._folder / f"{process.kind}-{place}.png"
                path.write_bytes(png)
                now_ms = int(time.time() * 1000)
                process.tell(Picture(step=place, time_ms=now_ms, name="samples", path=str(path)))
        except (StoreError, OSError) as error:
            self._failed(error)

    def _sheet_key(self, stage: str, step: int) -> str:
        return f"{self._prefix}/samples/{file_name(self._offsets[stage] + step)}"

    def _put(self, key: str, data: bytes) -> None:
        self._store.write(key, data, content_type="application/octet-stream")

    def _failed(self, error: BaseException) -> None:
        note = f"TensorBoard files could not be written: {clipped(str(error), 200)}"
        if not self._notes:
            log.warning("%s; training goes on", note)
            self._notes.append(note)


def _processes(run: TrainRun, folder: Path, notes: list[str]) -> list[TrackerProcess]:
    found: list[TrackerProcess] = []
    for kind, opening, variable, ref in _asked(run):
        token = os.environ.get(token_variable(ref), "") if ref is not None else ""
        if ref is not None and not token:
            notes.append(f"{kind} is told nothing: key {ref.key} of Secret {ref.name} is empty")
            log.warning("%s; training goes on", notes[-1])
            continue
        secrets = {variable: token} if token else {}
        found.append(TrackerProcess(kind, opening, secrets=secrets, folder=folder / kind))
    return found


def _asked(run: TrainRun) -> Iterator[tuple[str, Opening, str, SecretKeyRef | None]]:
    """Each tracker with the variable in which its library looks for the token."""
    mlflow, wandb = run.trackers.mlflow, run.trackers.wandb
    if mlflow is not None:
        opening = _opening(run, mlflow.tracking_uri, mlflow.experiment)
        yield "mlflow", opening, "MLFLOW_TRACKING_TOKEN", mlflow.token_secret_ref
    if wandb is not None:
        opening = _opening(run, wandb.base_url or "", wandb.project, entity=wandb.entity)
        yield "wandb", opening, "WANDB_API_KEY", wandb.api_key_secret_ref


def _opening(run: TrainRun, place: str, project: str, *, entity: str | None = None) -> Opening:
    settings: dict[str, str | int | float | bool] = {
        "variant": run.variant,
        "resolution": run.resolution,
        "baseModel": run.base_model.digest,
        "dataset": run.dataset.digest,
    }
    return Opening(
        place=place,
        project=project,
        entity=entity,
        run=run.digest.removeprefix("sha256:")[:32],
        name=run.session.name,
        settings=settings | _flat(run.training.dump(), "training"),
    )


def _flat(settings: Mapping[str, object], before: str) -> dict[str, str | int | float | bool]:
    """Nested settings under dotted names."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in settings.items():
        path = f"{before}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, path)
        elif isinstance(value, str | int | float | bool):
            found[path] = value
        elif value is not None:
            found[path] = str(value)
    return found
