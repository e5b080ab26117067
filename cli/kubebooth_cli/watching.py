"""Follows one session until it ends: live bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kubebooth_cli.board import Board, Row
from kubebooth_cli.errors import CliError
from kubebooth_cli.session import Session
from kubebooth_cli.showing import RESTING, phase, reading
from kubebooth_cli.text import duration, one_line, words

POLL_S = 1.0
_LINE_EVERY_S = 5.0

Look = Callable[[], Session]


class Display(Protocol):
    """Shows readings."""

    def show(self, session: Session) -> None:
        """A new reading."""

    def trouble(self, message: str) -> None:
        """The session could not be read just now."""


def follow(look: Look, display: Display, *, timeout_s: float | None) -> Session:
    """Look at a session until it ends.

    The first look must succeed; later faults of the API server are shown and tried again. Raises
    `CliError` when `timeout_s` has passed.
    """
    began = time.monotonic()
    session = look()
    while True:
        display.show(session)
        if session.ended is not None:
            return session
        if timeout_s is not None and time.monotonic() - began > timeout_s:
            raise CliError(
                f"{session.name} has not ended within {duration(timeout_s)}"
                f" ({words(session.phase)}: {one_line(session.message)})",
                f"it goes on; kubebooth watch {session.name} looks again",
            )
        time.sleep(POLL_S)
        try:
            session = look()
        except CliError as error:
            if "no session" in error.message:
                raise
            display.trouble(error.message)


class Lines:
    """A line when something changes, and every few seconds while a stage moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: tuple[str, ...] = ()
        self._step = -1
        self._at = 0.0

    def show(self, session: Session) -> None:
        """A new reading."""
        progress = session.progress
        moving = progress is not None and session.ended is None and session.phase not in RESTING
        stage = progress.stage if progress is not None and moving else ""
        told = (session.phase, stage, "" if moving else session.message)
        if told == self._told and not self._is_due(progress.step if progress else 0, moving=moving):
            return
        self._told, self._at = told, time.monotonic()
        self._step = progress.step if progress else -1
        text = one_line(session.message)
        if progress is not None and moving:
            text = f"{progress.percentage:>3}%  {reading(progress)}"
        self._print(f"{words(session.phase):<22} {text}")

    def trouble(self, message: str) -> None:
        """The session could not be read just now."""
        told = ("trouble", message)
        if told != self._told:
            self._told = told
            self._print(f"{'Trying again':<22} {one_line(message)}")

    def _is_due(self, step: int, *, moving: bool) -> bool:
        return moving and step != self._step and time.monotonic() - self._at >= _LINE_EVERY_S

    def _print(self, text: str) -> None:
        now = datetime.now().astimezone()
        self._console.print(Text(f"{now:%H:%M:%S}  {text}"), soft_wrap=True)


class Bars(AbstractContextManager["Bars"]):
    """A live picture of all stages."""

    def __init__(self, console: Console) -> None:
        self._board = Board()
        self._began = time.monotonic()
        self._session: Session | None = None
        self._rows: tuple[Row, ...] = ()
        self._trouble = ""
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            console=console, get_renderable=self._picture, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, session: Session) -> None:
        """A new reading."""
        self._session, self._rows = session, self._board.rows(session)
        self._trouble = ""
        self._live.refresh()

    def trouble(self, message: str) -> None:
        """The session could not be read just now."""
        self._trouble = message

    def _picture(self) -> RenderableType:
        if self._session is None:
            return Text("")
        return picture(
            self._session,
            self._rows,
            spinner=self._spinner,
            elapsed_s=time.monotonic() - self._began,
            trouble=self._trouble,
        )


def picture(
    session: Session,
    rows: tuple[Row, ...],
    *,
    spinner: RenderableType,
    elapsed_s: float,
    trouble: str = "",
) -> RenderableType:
    """The live picture: name and phase, a bar for each stage, one for the whole."""
    head = Text.assemble((session.name, "bold"), "  ", phase(session), "  ")
    head.append(one_line(session.message), "dim")
    head.truncate(200, overflow="ellipsis")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=13)
    grid.add_column(width=30)
    grid.add_column(justify="right", min_width=9)
    grid.add_column()
    for row in rows:
        grid.add_row(*_row_cells(session, row, spinner))
    whole = 100 if session.ended else (session.progress.percentage if session.progress else 0)
    bar = ProgressBar(total=100, completed=whole, width=30, complete_style="cyan")
    grid.add_row("", Text("Total", "bold"), bar, f"{whole}%", Text(duration(elapsed_s), "dim"))
    parts: list[RenderableType] = [head, grid]
    if trouble:
        parts.append(Text(f"trying again: {one_line(trouble)}", "yellow"))
    return Group(*parts)


def _row_cells(session: Session, row: Row, spinner: RenderableType) -> list[RenderableType]:
    name = words(row.stage)
    if row.state == "waiting":
        return [Text("·", "dim"), Text(name, "dim"), "", "", ""]
    count = f"{row.step}/{row.total}" if row.total else ""
    if row.state == "done":
        bar = ProgressBar(total=1, completed=1, width=30)
        return [Text("✔", "green"), name, bar, Text(count, "dim"), ""]
    pulse = row.total == 0 and row.state == "active" and session.ended is None
    bar = ProgressBar(
        total=row.total or 1, completed=row.step, width=30, pulse=pulse, complete_style="cyan"
    )
    if row.state == "begun":
        return [Text("·", "cyan"), name, bar, count, ""]
    mark: RenderableType = spinner if session.ended is None else Text("✖", "red")
    facts = reading(session.progress).partition(" · ")[2] if session.progress else ""
    return [mark, Text(name, "bold"), bar, count, Text(facts, "cyan")]
