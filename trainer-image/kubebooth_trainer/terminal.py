"""Shows a person how far the worker is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kubebooth_api.v1alpha1.session import Progress

from kubebooth_trainer.reporter import Reporter

_LOG = logging.getLogger(__name__)
_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


@contextmanager
def showing(reporter: Reporter) -> Iterator[None]:
    """Show the reporter's readings while the block runs."""
    if sys.stdout.isatty():
        with _bar() as show, _watching(reporter, show, every_s=_BAR_EVERY_S):
            yield
        return
    with _watching(reporter, _Lines(), every_s=1.0):
        yield


class _Lines:
    """A log line when the stage changes, and every ten seconds while something moves."""

    def __init__(self) -> None:
        self._told: tuple[str, int] | None = None
        self._at = 0.0

    def __call__(self, progress: Progress) -> None:
        reading = (progress.stage, progress.step)
        if progress.total_steps == 0 or reading == self._told:
            return
        same_stage = self._told is not None and self._told[0] == progress.stage
        done = progress.step == progress.total_steps
        if same_stage and not done and time.monotonic() - self._at < _LINE_EVERY_S:
            return
        self._told, self._at = reading, time.monotonic()
        fields = progress.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"updated_at"}
        )
        _LOG.info("progress", extra=fields)


@contextmanager
def _watching(
    reporter: Reporter, show: Callable[[Progress], None], *, every_s: float
) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            show(reporter.status.progress)

    thread = threading.Thread(target=watch, name="terminal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show(reporter.status.progress)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    console = Console()
    columns = (
        TextColumn("[bold]{task.description:<12}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Bars(*columns, console=console) as bars, _logs_above(console):
        tasks: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            if progress.total_steps == 0:
                return
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(
                    progress.stage, total=progress.total_steps, told=""
                )
            bars.update(
                tasks[progress.stage],
                completed=progress.step,
                total=progress.total_steps,
                told=told_of(progress),
            )

        yield show


@contextmanager
def _logs_above(console: Any) -> Iterator[None]:
    """Log lines are printed above the bars instead of through them."""
    moved = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    streams = [handler.setStream(_Above(console)) for handler in moved]
    try:
        yield
    finally:
        for handler, stream in zip(moved, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)


class _Above:
    def __init__(self, console: Any) -> None:
        self._console = console

    def write(self, text: str) -> None:
        """Print one log line as it is: file names are not markup."""
        if text.strip():
            self._console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Nothing is kept back."""


def told_of(progress: Progress) -> str:
    """`loss 0.1234  validation 0.1301  lr 2e-06  3.1 img/s  2m10s left`."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.validation_loss is not None:
        parts.append(f"validation {progress.validation_loss:.4f}")
    if progress.learning_rate is not None:
        parts.append(f"lr {progress.learning_rate:.2g}")
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.1f} img/s")
    if progress.estimated_remaining_seconds is not None:
        minutes, seconds = divmod(progress.estimated_remaining_seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
        parts.append(f"{clock} left")
    return "  ".join(parts)
