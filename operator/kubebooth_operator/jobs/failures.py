"""Why a Job failed, in words that name the cure. Pure; decides nothing about the next try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from kubebooth_api.exitcodes import REASONS, ExitCode

from kubebooth_operator.jobs.readings import Job, Pod
from kubebooth_operator.jobs.work import TRAIN

_OUT_OF_MEMORY = REASONS[ExitCode.OUT_OF_MEMORY]
_OOM_CURE = "raise spec.runtime.resources.memory"
_OOM_CURES = {TRAIN: f"{_OOM_CURE}, or lower training.batchSize or training.resolution"}
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Failure:
    """Why a Job failed, with the cure."""

    reason: str
    message: str
    exit_code: int | None
    counts: bool


def of(job: Job) -> Failure | None:
    """What made a failed Job fail; None while its pod has not told yet."""
    ended = [pod for pod in job.pods if pod.ended and pod.reason]
    if not ended:
        return None
    pod = max(ended, key=lambda pod: pod.finished_at or pod.created_at or _LONG_AGO)
    return Failure(
        reason=pod.reason,
        message=_explain(pod, job.stage),
        exit_code=pod.exit_code,
        counts=not pod.preempted,
    )


def _explain(pod: Pod, stage: str) -> str:
    if pod.reason == _OUT_OF_MEMORY and pod.exit_code != ExitCode.OUT_OF_MEMORY:
        cure = _OOM_CURES.get(stage, _OOM_CURE)
        return f"{stage}: the worker was killed at its memory limit; {cure}"
    if pod.report is not None and pod.report.message:
        return f"{stage}: {pod.report.message}"
    if pod.exit_code is None:
        return f"{stage}: pod {pod.name} ended as {pod.reason} before the worker could report"
    said = f"; it said last: {pod.last_words[-600:].strip()}" if pod.last_words.strip() else ""
    return (
        f"{stage}: the worker ended with exit code {pod.exit_code} without a report{said}; see"
        f" `kubectl logs {pod.name}`"
    )


def silent(job: Job) -> Failure:
    """A Job that ended without a word of its pod that can be used."""
    if job.result == "Complete":
        return Failure(
            reason="ReportMissing",
            message=f"{job.stage}: the worker ended well but its report cannot be read; the next"
            " try finds in the store what is already done",
            exit_code=None,
            counts=True,
        )
    told = f" ({job.reason}: {job.message})" if job.reason else ""
    return Failure(
        reason="PodLost",
        message=f"{job.stage}: the Job failed{told} and no pod is left to say why; see `kubectl"
        f" describe job {job.name}`",
        exit_code=None,
        counts=True,
    )
