"""The terminal: both consoles, one-line answers and the bar of a transfer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def _width() -> int | None:
    """The terminal's own width; in pipes wide enough for a table."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


out = Console(highlight=False, width=_width())
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line as it is, however narrow the terminal."""
    out.print(text, markup=False, soft_wrap=True)


def count(number: int, what: str) -> str:
    """`1 file` or `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@contextmanager
def transfer(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; gives the function that is told further bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda done: progress.advance(task, done)
