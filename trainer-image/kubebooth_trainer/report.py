"""The worker's last word: a `RunReport` that always fits into a termination message.

It must not know how the work was done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import REPORT_LIMIT_BYTES, RunReport
from kubebooth_api.v1alpha1.session import FileVerdict

from kubebooth_trainer.text import clipped

MESSAGE_CHARACTERS = 1024
_SHORT = 120


def dumped(report: RunReport) -> bytes:
    """JSON of at most `REPORT_LIMIT_BYTES` bytes, always whole and valid.

    What does not fit is left out from the least to the most important: words of the refused
    files, the refused files (their count stays), the page to review, the tail of the message,
    what the losses suggest, the sample picture.
    A report whose references alone do not fit becomes an `InternalError` that says so.
    """
    for candidate in _shrinking(report):
        data = _json(candidate)
        if len(data) <= REPORT_LIMIT_BYTES:
            return data
    hopeless = RunReport(
        kind=report.kind,
        outcome="Failed",
        reason="ReportTooLarge",
        message="the addresses in the store are too long to report; shorten storage.prefix",
        exit_code=int(ExitCode.INTERNAL_ERROR),
        started_at=report.started_at,
        finished_at=report.finished_at,
    )
    return _json(hopeless)


def write(report: RunReport, path: Path) -> bytes:
    """Write the report to a file and give its bytes. Raises `OSError`.

    The termination log is a mount of one file, so it is written in place, not by rename.
    """
    data = dumped(report)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        # A report in a pipe or a device cannot be synced, and need not be.
        if path.is_file():
            os.fsync(file.fileno())
    return data


def _shrinking(report: RunReport) -> Iterator[RunReport]:
    yield report
    dataset = report.dataset
    if dataset is not None:
        for worst in _fewer(dataset.worst):
            fewer = dataset.model_copy(update={"worst": worst})
            report = report.model_copy(update={"dataset": fewer})
            yield report
        bare = dataset.model_copy(update={"worst": (), "review_uri": None})
        report = report.model_copy(update={"dataset": bare})
        yield report
    for characters in (512, 256, 128, 64):
        report = report.model_copy(update={"message": clipped(report.message, characters)})
        yield report
    report = report.model_copy(update={"hints": ()})
    yield report
    if report.detected is not None:
        detected = report.detected.model_copy(update={"evidence": ()})
        report = report.model_copy(update={"detected": detected})
        yield report
    yield report.model_copy(update={"samples": None, "memory_profile": None})


def _fewer(worst: tuple[FileVerdict, ...]) -> Iterator[tuple[FileVerdict, ...]]:
    brief = tuple(
        FileVerdict(file=clipped(row.file, _SHORT), reason=clipped(row.reason, _SHORT))
        for row in worst
    )
    for count in range(len(worst), -1, -1):
        yield brief[:count]


def _json(report: RunReport) -> bytes:
    return report.model_dump_json(by_alias=True, exclude_none=True).encode()
