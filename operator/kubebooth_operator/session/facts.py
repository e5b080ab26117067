"""What a session's status must remember besides its tries, and how it grows.

Every function takes the remembered facts and gives the new ones; none reads phase or conditions.
Facts carry the digest of what they were made from, so stale ones are recognised.
"""

from __future__ import annotations

from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import RunReport, TrainRun, WorkerStatus
from kubebooth_api.v1alpha1.session import DreamboothSessionStatus, Progress, RunStatus
from kubebooth_api.v1alpha1.session_status import Effective

from kubebooth_operator.jobs import facts as tries
from kubebooth_operator.jobs.work import TRAIN, Work
from kubebooth_operator.session.asked import run_uri

_CONVERTED = {"Safetensors", "Ckpt"}
"""Formats that only conversions publish."""
Facts = DreamboothSessionStatus


def is_prepared(facts: Facts, work: Work) -> bool:
    """Whether the snapshot and the base model are those that the spec asks for."""
    dataset = facts.dataset
    return (
        dataset is not None and dataset.input_digest == work.target and facts.base_model is not None
    )


def is_trained(facts: Facts, work: Work) -> bool:
    """Whether what the spec asks of the trainer was published."""
    return facts.run is not None and facts.run.completed_target == work.target


def with_prepared(facts: Facts, work: Work, report: RunReport | None) -> Facts:
    """Remember a succeeded prepare; an incomplete report changes nothing."""
    if report is None or report.dataset is None or report.base_model is None:
        return facts
    dataset = report.dataset.model_copy(update={"input_digest": work.target})
    return facts.model_copy(
        update={
            "dataset": dataset,
            "base_model": report.base_model,
            "class_images": report.class_images,
            "concept_images": report.concept_images,
        }
    )


def with_run(facts: Facts, work: Work) -> Facts:
    """Turn to a train run. Another run starts without the old one's checkpoint; its artifacts stay
    until there are newer ones."""
    run = work.run
    if not isinstance(run, TrainRun):
        return facts
    uri = run_uri(work)
    if facts.run is not None and (facts.run.digest, facts.run.uri) == (run.digest, uri):
        return facts
    return facts.model_copy(
        update={
            "run": RunStatus(digest=run.digest, uri=uri, base_model_digest=run.base_model.digest),
            "checkpoint": None,
            "samples": None,
            "progress": None,
            "hints": (),
        }
    )


def with_trained(
    facts: Facts, work: Work, report: RunReport | None, *, exports: frozenset[str]
) -> Facts:
    """Remember a succeeded training; a report without artifact changes nothing. What was exported
    earlier, by name in `exports`, stays until there is something newer."""
    if report is None or not report.artifacts or facts.run is None:
        return facts
    done = Progress(
        stage="Publish", step=1, total_steps=1, percentage=100, updated_at=report.finished_at
    )
    older = tuple(artifact for artifact in facts.artifacts if artifact.name in exports)
    return facts.model_copy(
        update={
            "run": facts.run.model_copy(update={"completed_target": work.target}),
            "artifacts": (*report.artifacts, *older),
            "checkpoint": report.checkpoint or facts.checkpoint,
            "samples": report.samples or facts.samples,
            "hints": report.hints or facts.hints,
            "progress": done,
            "completed_at": facts.completed_at if exports else report.finished_at,
        }
    )


def with_exported(facts: Facts, exported: dict[str, Artifact], wanted: frozenset[str]) -> Facts:
    """Take in what conversions published; exports that are not wanted any more are not listed."""
    trained = tuple(
        a
        for a in facts.artifacts
        if a.name not in exported and (a.format not in _CONVERTED or a.name in wanted)
    )
    artifacts = (*trained, *(exported[name] for name in sorted(exported)))
    if artifacts == facts.artifacts:
        return facts
    return facts.model_copy(update={"artifacts": artifacts})


def with_profile(facts: Facts, report: RunReport | None, *, resolution: int) -> Facts:
    """Remember with which memory profile the current run is trained."""
    if report is None or report.memory_profile is None or facts.run is None:
        return facts
    known = facts.run.effective or Effective()
    effective = known.model_copy(
        update={"memory_profile": report.memory_profile, "resolution": resolution}
    )
    run = facts.run.model_copy(update={"effective": effective})
    return facts.model_copy(update={"run": run})


def with_worker(facts: Facts, worker: WorkerStatus | None, stage: str) -> Facts:
    """Take what the running worker of a stage says."""
    facts = tries.with_progress(facts, worker, stage)
    if worker is None or stage != TRAIN or tries.stage_of(worker.progress) != TRAIN:
        return facts
    update: dict[str, object] = {}
    known, told = facts.checkpoint, worker.checkpoint
    if told is not None and (known is None or told.created_at > known.created_at):
        update["checkpoint"] = told
    if worker.samples is not None:
        update["samples"] = worker.samples
    return facts.model_copy(update=update) if update else facts
