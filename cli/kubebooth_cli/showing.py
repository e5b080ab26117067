"""Sessions as tables and panels for a terminal; pure: a session and a time in, a renderable out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kubebooth_cli.session import Progress, Session, age_s
from kubebooth_cli.text import duration, one_line, plain, size, words

_COLOURS = {
    "Complete": "green",
    "Failed": "red",
    "Stalled": "red",
    "Retrying": "yellow",
    "Waiting": "yellow",
    "Suspended": "yellow",
    "Stopping": "yellow",
}
_BAD_WHEN_TRUE = {"Stalled", "Failed"}
RESTING = {"Waiting", "Retrying", "Stopping", "Suspended"}
"""Phases in which no worker moves, so that the message says more than the last progress."""
_NEUTRAL = {"Reconciling", "Suspended"}


def phase(session: Session) -> Text:
    """The phase in words and its colour."""
    return Text(words(session.phase), _COLOURS.get(session.phase, "cyan"))


def reading(progress: Progress) -> str:
    """`Denoiser 240/600 · loss 0.083 · 3.1 pictures/s · 1m40s left`, as far as known."""
    parts = [words(progress.stage)]
    if progress.total:
        parts[0] += f" {_units(progress)}"
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.1f} pictures/s")
    if progress.remaining_s is not None:
        parts.append(f"{duration(progress.remaining_s)} left")
    return " · ".join(parts)


def _units(progress: Progress) -> str:
    """A fetch counts in MiB, a conversion in bytes, everything else in things."""
    if progress.stage == "Fetch":
        return f"{progress.step}/{progress.total} MiB"
    if progress.stage == "Convert":
        return f"{size(progress.step)} of {size(progress.total)}"
    return f"{progress.step}/{progress.total}"


def table(sessions: Iterable[Session], now: datetime, *, namespaces: bool) -> Table:
    """All sessions, one line each."""
    shown = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    if namespaces:
        shown.add_column("NAMESPACE", no_wrap=True)
    shown.add_column("NAME", no_wrap=True)
    shown.add_column("PHASE", no_wrap=True)
    shown.add_column("PROGRESS", no_wrap=True, width=16)
    shown.add_column("MESSAGE", ratio=1, no_wrap=True, overflow="ellipsis")
    shown.add_column("AGE", no_wrap=True, justify="right")
    for session in sessions:
        row: list[RenderableType] = [session.namespace] if namespaces else []
        row += [Text(session.name, "bold"), phase(session), _short_bar(session)]
        row += [Text(_short_message(session)), _age(session.raw, now)]
        shown.add_row(*row)
    return shown


def detail(session: Session, now: datetime) -> RenderableType:
    """Everything about one session: facts, conditions, what to do."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(ratio=1)
    for label, value in _facts(session, now):
        facts.add_row(label, value)
    title = Text.assemble((session.name, "bold"), f" · namespace {session.namespace}")
    panel = Panel(facts, title=title, title_align="left", border_style="dim", box=box.ROUNDED)
    parts: list[RenderableType] = [panel]
    if session.conditions:
        parts.append(_conditions(session, now))
    failure = failure_lines(session)
    if failure is not None:
        parts.append(failure)
    return Group(*parts)


def failure_lines(session: Session) -> Text | None:
    """The newest failure with its cure, in red while it stands in the way."""
    raw = session.status.get("lastFailure")
    if not isinstance(raw, Mapping):
        return None
    code = f" (exit code {raw['exitCode']})" if raw.get("exitCode") is not None else ""
    in_the_way = session.holds("Failed") or session.holds("Stalled")
    head = "failed" if in_the_way else "last failure"
    style = "bold red" if in_the_way else "bold yellow"
    return Text.assemble(
        (f"{head}: ", style),
        plain(raw.get("reason", "")),
        code,
        "\n  ",
        plain(raw.get("message", "")),
    )


def _facts(session: Session, now: datetime) -> Iterable[tuple[str, RenderableType]]:
    status = session.status
    yield "Phase", phase(session)
    note = "" if session.current else "  (of an earlier spec; the operator has yet to look)"
    yield "Message", Text(plain(session.message) + note)
    if session.progress is not None:
        yield "Progress", _long_bar(session.progress)
    dataset = status.get("dataset")
    if isinstance(dataset, Mapping):
        yield "Pictures", Text(_dataset(dataset))
    checkpoint = status.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        yield "Checkpoint", Text(_checkpoint(checkpoint, now))
    if status.get("retries"):
        yield "Retries", Text(_retries(status, now))
    attempts = [a for a in status.get("attempts") or () if isinstance(a, Mapping)]
    if attempts:
        yield "Attempts", _attempts(attempts)
    if status.get("samples"):
        yield "Samples", Text(plain(status["samples"]), overflow="fold")
    if session.artifacts:
        yield "Artifacts", _artifacts(session)


def _dataset(raw: Mapping[str, Any]) -> str:
    rejected = raw.get("rejected") or 0
    told = f"{raw.get('images', 0)} usable, {raw.get('captioned', 0)} with a caption of their own"
    if not rejected:
        return told
    worst = [item for item in raw.get("worst") or () if isinstance(item, Mapping)]
    files = "".join(f"\n{plain(w.get('file', ''))}: {plain(w.get('reason', ''))}" for w in worst)
    return f"{told}, {rejected} refused{files}"


def _checkpoint(raw: Mapping[str, Any], now: datetime) -> str:
    stage = words(str(raw.get("stage", "")))
    told = f"{stage} step {raw.get('step', 0)}, {size(raw.get('size') or 0)}"
    age = age_s(raw.get("createdAt"), now)
    return told if age is None else f"{told}, {duration(age)} ago"


def _retries(status: Mapping[str, Any], now: datetime) -> str:
    told = str(status["retries"])
    at = str(status.get("nextRetryAt") or "")
    if not at:
        return told
    moment = datetime.fromisoformat(at.replace("Z", "+00:00"))
    return f"{told}; next in {duration(max(0.0, (moment - now).total_seconds()))}"


def _attempts(attempts: list[Mapping[str, Any]]) -> Table:
    shown = Table.grid(padding=(0, 2))
    for raw in attempts[-5:]:
        outcome = str(raw.get("outcome", ""))
        colour = {"Succeeded": "green", "Failed": "red", "Preempted": "yellow"}.get(outcome, "cyan")
        number = f"#{raw.get('number', '?')}"
        reason = "" if raw.get("reason") == outcome else plain(raw.get("reason") or "")
        shown.add_row(number, plain(raw.get("stage", "")), Text(outcome, colour), Text(reason))
    return shown


def _artifacts(session: Session) -> Text:
    lines = [
        Text.assemble(
            (plain(artifact.name), "bold green"),
            f"  {plain(artifact.format)}  {size(artifact.size)}  ",
            (plain(artifact.digest[:19]), "dim"),
            f"\n{plain(artifact.uri)}",
        )
        for artifact in session.artifacts
    ]
    return Text("\n", overflow="fold").join(lines)


def _conditions(session: Session, now: datetime) -> Table:
    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "CONDITION", "REASON"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("MESSAGE", ratio=1)
    shown.add_column("FOR", justify="right", no_wrap=True)
    for name, raw in session.conditions.items():
        age = age_s(raw.get("lastTransitionTime"), now)
        shown.add_row(
            _mark(name, str(raw.get("status"))),
            plain(name),
            Text(plain(raw.get("reason", "")), "dim"),
            Text(plain(raw.get("message", ""))),
            "" if age is None else duration(age),
        )
    return shown


def _mark(name: str, status: str) -> Text:
    if status == "True":
        if name in _BAD_WHEN_TRUE:
            return Text("✖", "red")
        return Text("●", "yellow") if name in _NEUTRAL else Text("✔", "green")
    return Text("·", "dim") if status == "False" else Text("?", "yellow")


def _long_bar(progress: Progress) -> Table:
    shown = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=100, completed=progress.percentage, width=24, complete_style="cyan")
    shown.add_row(bar, f"{progress.percentage}%", Text(reading(progress)))
    return shown


def _short_bar(session: Session) -> RenderableType:
    if session.progress is None and session.phase != "Complete":
        return Text("")
    done = 100 if session.progress is None else session.progress.percentage
    shown = Table.grid(padding=(0, 1))
    shown.add_row(
        ProgressBar(total=100, completed=done, width=10, complete_style="cyan"), f"{done:>3}%"
    )
    return shown


def _short_message(session: Session) -> str:
    moves = session.ended is None and session.phase not in RESTING
    if session.progress is not None and moves:
        return reading(session.progress)
    return one_line(session.message)


def _age(raw: Mapping[str, Any], now: datetime) -> str:
    age = age_s((raw.get("metadata") or {}).get("creationTimestamp"), now)
    return "" if age is None else duration(age)
