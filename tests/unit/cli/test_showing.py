"""What people see: words, numbers, tables and panels, whatever the status holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_cli.board import Board
from kubebooth_cli.logs import friendly
from kubebooth_cli.session import read
from kubebooth_cli.showing import detail, failure_lines, reading, table
from kubebooth_cli.text import duration, one_line, plain, size, words
from kubebooth_cli.watching import picture
from rich.console import Console
from rich.text import Text

NOW = datetime(2026, 1, 2, tzinfo=UTC)

FULL: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "TrainingDenoiser",
    "message": "the worker trains the model",
    "progress": {
        "stage": "Denoiser",
        "step": 240,
        "totalSteps": 600,
        "percentage": 43,
        "loss": 0.0831,
        "imagesPerSecond": 3.14,
        "estimatedRemainingSeconds": 100,
    },
    "dataset": {
        "images": 6,
        "captioned": 1,
        "rejected": 1,
        "worst": [{"file": "b.heic", "reason": "is HEIC; export it as JPEG"}],
    },
    "checkpoint": {
        "stage": "Denoiser",
        "step": 200,
        "size": 4_400_000,
        "createdAt": "2026-01-01T23:59:00Z",
    },
    "retries": 2,
    "nextRetryAt": "2026-01-02T00:00:30Z",
    "attempts": [{"number": 1, "stage": "Train", "outcome": "Preempted", "reason": "Preempted"}],
    "samples": "s3://b/samples/before-after.png",
    "artifacts": [
        {"name": "diffusers", "uri": "s3://b/a", "digest": "sha256:" + "0" * 64, "size": 5}
    ],
    "lastFailure": {
        "reason": "StorageUnavailable",
        "message": "the store was away",
        "exitCode": 67,
    },
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "Training", "message": "training"},
        {"type": "DatasetReady", "status": "True", "reason": "Prepared", "message": "6 pictures"},
    ],
}


def _object(status: Any) -> dict[str, Any]:
    metadata = {
        "name": "dog",
        "namespace": "team",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"metadata": metadata, "spec": {}, "status": status}


def _print(renderable: Any) -> str:
    console = Console(width=110, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_the_details_hold_all_that_matters() -> None:
    shown = _print(detail(read(_object(FULL)), NOW))
    for part in (
        "dog · namespace team",
        "Training denoiser",
        "43% Denoiser 240/600 · loss 0.0831 · 3.1 pictures/s · 1m40s left",
        "6 usable, 1 with a caption of their own, 1 refused",
        "b.heic: is HEIC; export it as JPEG",
        "Denoiser step 200, 4.4 MB, 1m0s ago",
        "2; next in 30s",
        "#1  Train  Preempted",
        "s3://b/samples/before-after.png",
        "✔  DatasetReady",
        "last failure: StorageUnavailable (exit code 67)",
    ):
        assert part in shown, part


def test_an_old_status_is_marked_as_such() -> None:
    shown = _print(detail(read(_object({**FULL, "observedGeneration": 0})), NOW))
    assert "of an earlier spec" in shown


def test_the_table_has_a_line_for_each_session() -> None:
    shown = _print(table([read(_object(FULL)), read(_object(None))], NOW, namespaces=True))
    lines = shown.splitlines()
    assert lines[0].split() == ["NAMESPACE", "NAME", "PHASE", "PROGRESS", "MESSAGE", "AGE"]
    assert "43%" in lines[1]
    assert "the operator has not looked at it yet" in lines[2]
    assert lines[2].endswith("1d0h")


def test_a_suspended_session_shows_its_message_not_its_last_progress() -> None:
    status = {**FULL, "phase": "Suspended", "message": "suspended by you"}
    assert "suspended by you" in _print(table([read(_object(status))], NOW, namespaces=False))


def test_markup_in_a_message_is_only_text() -> None:
    failure = {"reason": "DataError", "message": "[bold]a[/bold].jpg [/] is cut off"}
    shown = _print(failure_lines(read(_object({"lastFailure": failure}))))
    assert "[bold]a[/bold].jpg [/] is cut off" in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(extra=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_fields_of_a_newer_operator_change_nothing(extra: dict[str, Any]) -> None:
    status = {**{key: value for key, value in extra.items() if key not in FULL}, **FULL}
    assert _print(detail(read(_object(status)), NOW)) == _print(detail(read(_object(FULL)), NOW))


@given(st.text())
def test_no_text_can_steer_a_terminal(text: str) -> None:
    assert not any(ord(char) < 32 and char not in "\n\t" for char in plain(text))
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (192, "3m12s"), (11520, "3h12m"), (273600, "3d4h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_133_000_000, "2.1 GB")]
)
def test_sizes_are_short(count: int, shown: str) -> None:
    assert size(count) == shown


def test_phases_are_words() -> None:
    assert words("TrainingTextEncoder") == "Training text encoder"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            '{"ts": "2026-01-01T21:38:30.120+00:00", "level": "info", "logger": "a.b",'
            ' "msg": "progress", "stage": "Denoiser", "loss": 0.169225}',
            "21:38:30 info    progress  stage=Denoiser loss=0.1692",
        ),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[1, 2]", "[1, 2]"),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_log_lines_are_readable(line: str, shown: str) -> None:
    assert friendly(line) == shown


def test_an_unknown_loss_is_not_shown() -> None:
    progress = read(
        _object({"progress": {"stage": "Prepare", "step": 1, "totalSteps": 6}})
    ).progress
    assert progress is not None
    assert reading(progress) == "Prepare 1/6"


def test_the_live_picture_fits_a_narrow_terminal() -> None:
    session = read(_object(FULL))
    shown = Console(width=60, color_system=None)
    with shown.capture() as captured:
        shown.print(picture(session, Board().rows(session), spinner=Text("*"), elapsed_s=61))
    text = captured.get()
    assert "240/600" in text
    assert all(len(line) <= 60 for line in text.splitlines())
