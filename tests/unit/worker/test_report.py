import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import REPORT_LIMIT_BYTES, RunReport
from kubebooth_api.v1alpha1.conversion import Detected
from kubebooth_api.v1alpha1.session import DatasetStatus, FileVerdict
from kubebooth_trainer.report import dumped, write
from kubebooth_trainer.text import clipped

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64
WORDS = st.text(st.characters(codec="utf-8"), max_size=512)


def report(**changes: Any) -> RunReport:
    whole: dict[str, Any] = {
        "kind": "Prepare",
        "outcome": "Succeeded",
        "started_at": NOON,
        "finished_at": NOON,
        **changes,
    }
    return RunReport(**whole)


def dataset(worst: tuple[FileVerdict, ...], uri: str = "s3://b/k") -> DatasetStatus:
    return DatasetStatus(digest=DIGEST, uri=uri, images=3, rejected=len(worst), worst=worst)


def test_a_report_that_fits_is_left_alone() -> None:
    whole = report(message="3 pictures ready", dataset=dataset(()))
    assert RunReport.model_validate_json(dumped(whole)) == whole


@settings(deadline=None, max_examples=150)
@given(
    message=st.text(st.characters(codec="utf-8"), max_size=1024),
    rows=st.lists(st.tuples(WORDS, WORDS), max_size=8),
    prefix=st.integers(min_value=1, max_value=2040),
)
def test_a_report_always_fits_and_is_always_valid(
    message: str, rows: list[tuple[str, str]], prefix: int
) -> None:
    worst = tuple(FileVerdict(file=file, reason=reason) for file, reason in rows)
    model = Artifact(name="m", uri="s3://" + "m" * prefix, digest=DIGEST, size=1)
    whole = report(
        message=message,
        dataset=dataset(worst, "s3://" + "d" * prefix),
        base_model=model,
        samples="s3://b/s",
    )
    data = dumped(whole)
    assert len(data) <= REPORT_LIMIT_BYTES
    again = RunReport.model_validate_json(data)
    if again.reason != "ReportTooLarge":
        assert again.base_model == model
        assert again.dataset is not None
        assert (again.dataset.digest, again.dataset.rejected) == (DIGEST, len(rows))


def test_the_number_of_refused_files_survives_where_their_names_do_not() -> None:
    worst = tuple(FileVerdict(file="ä" * 512, reason="ö" * 512) for _ in range(8))
    again = RunReport.model_validate_json(
        dumped(report(message="ü" * 1024, dataset=dataset(worst)))
    )
    assert again.dataset is not None
    assert again.dataset.rejected == 8
    assert 1 <= len(again.dataset.worst) < 8
    assert again.dataset.worst[0].reason.endswith("…")
    assert again.message == "ü" * 1024


def test_references_that_do_not_fit_are_confessed() -> None:
    artifacts = tuple(
        Artifact(name=str(number), uri="s3://" + "x" * 2000, digest=DIGEST, size=1)
        for number in range(4)
    )
    again = RunReport.model_validate_json(dumped(report(artifacts=artifacts)))
    assert (again.outcome, again.exit_code, again.reason) == ("Failed", 70, "ReportTooLarge")
    assert "storage.prefix" in again.message


def test_a_text_is_clipped_to_one_line() -> None:
    assert clipped("a\n b\tc", 9) == "a b c"
    assert clipped("x" * 10, 4) == "xxx…"
    assert clipped("\ud800", 9) == "?"
    assert clipped("\x1b[2J \u202egnp", 20) == "\ufffd[2J \ufffdgnp"


def test_a_report_replaces_an_older_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    path.write_text("x" * 9000)
    write(report(message="short"), path)
    assert json.loads(path.read_text())["message"] == "short"


def test_a_report_goes_into_a_pipe_too() -> None:
    reading, writing = os.pipe()
    write(report(message="short"), Path(f"/proc/self/fd/{writing}"))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert json.load(pipe)["message"] == "short"


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write(report(), tmp_path / "missing" / "report.json")


def test_evidence_gives_way_before_what_was_found() -> None:
    evidence = tuple("ü" * 256 for _ in range(16))
    found = Detected(family="sd", variant="sd15", evidence=evidence)
    told = RunReport.model_validate_json(dumped(report(kind="Convert", detected=found)))
    assert told.reason == "Succeeded"
    assert told.detected == Detected(family="sd", variant="sd15")
