"""What a conversion's status must remember besides its tries, and how it grows. Pure."""

from __future__ import annotations

from kubebooth_api.artifacts import UNKNOWN_DIGEST
from kubebooth_api.runs import ConvertRun, RunReport
from kubebooth_api.v1alpha1.conversion import ModelConversionStatus
from kubebooth_api.v1alpha1.session import Progress

from kubebooth_operator.jobs.work import CONVERT, Work

Facts = ModelConversionStatus


def is_converted(facts: Facts, work: Work) -> bool:
    """Whether what the spec asks for was published, or planned where that is all it asks."""
    return facts.completed_target == work.target


def with_source(facts: Facts, work: Work) -> Facts:
    """Remember which source is converted, where its digest is known beforehand."""
    run = work.run
    if not isinstance(run, ConvertRun) or run.source.digest == UNKNOWN_DIGEST:
        return facts
    return facts.model_copy(update={"source_digest": run.source.digest})


def with_detected(facts: Facts, report: RunReport | None) -> Facts:
    """Remember what the headers said."""
    if report is None or report.detected is None:
        return facts
    return facts.model_copy(update={"detected": report.detected})


def with_converted(facts: Facts, work: Work, report: RunReport | None) -> Facts:
    """Remember a succeeded conversion; a report without what was asked changes nothing."""
    run = work.run
    if report is None or not isinstance(run, ConvertRun):
        return facts
    if not report.artifacts and not run.dry_run:
        return facts
    artifact = report.artifacts[0] if report.artifacts else facts.artifact
    size = artifact.size if artifact else 0
    done = Progress(
        stage=CONVERT,
        step=size,
        total_steps=size,
        percentage=100,
        updated_at=report.finished_at,
    )
    return with_detected(facts, report).model_copy(
        update={
            "artifact": artifact,
            "counts": report.counts,
            "source_digest": report.source_digest or facts.source_digest,
            "completed_target": work.target,
            "completed_at": report.finished_at,
            "progress": done,
        }
    )
