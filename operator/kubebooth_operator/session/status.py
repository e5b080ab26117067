"""Facts and situation → the whole status of a session: conditions, progress, words. Pure.

The phase is written here and read nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kubebooth_api.v1alpha1.session import Progress

from kubebooth_operator.doors import Event
from kubebooth_operator.jobs import telling
from kubebooth_operator.jobs.facts import stage_of
from kubebooth_operator.jobs.situation import Kind, Situation
from kubebooth_operator.jobs.telling import Said
from kubebooth_operator.jobs.work import FETCH, PREPARE, PURGE, TRAIN
from kubebooth_operator.session.exporting import EXPORT
from kubebooth_operator.session.facts import Facts

CONDITIONS = (
    *telling.GENERAL,
    "DatasetReady",
    "ModelReady",
    "CaptionsReady",
    "Approved",
    "QuotaReserved",
    "Trained",
    "Exported",
    "Suspended",
)
"""Every condition of a session, in the order in which they are written."""

_TRAINING_PHASES = {
    "ClassImages": "MakingClassImages",
    "TextEncoder": "TrainingTextEncoder",
    "Denoiser": "TrainingDenoiser",
    "Samples": "Sampling",
    "Publish": "Publishing",
}


def write(
    facts: Facts,
    situation: Situation,
    *,
    stages: Mapping[str, Said],
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """The status that should be; `stages` are the conditions that `stages` or `stages_as_before`
    gave. The same input gives the same status, and times of unchanged conditions stay."""
    said = {**telling.general(situation), **stages}
    progress = _fitting(facts.progress, situation)
    complete = facts.model_copy(
        update={
            "observed_generation": generation,
            "phase": _phase(situation, progress),
            "message": situation.message,
            "summary": telling.summary(situation.message),
            "conditions": telling.conditions(
                facts.conditions, said, order=CONDITIONS, generation=generation, now=now
            ),
            "progress": progress,
            "progress_text": telling.progress_text(progress, situation),
        }
    )
    return complete.dump()


def events(before: Facts, after: Mapping[str, Any], situation: Situation) -> tuple[Event, ...]:
    """What changed and is worth an event."""
    milestones = {"DatasetReady", "Trained", "Complete"}
    return telling.events(before.conditions, after, situation, milestones=milestones)


def stages(
    facts: Facts, situation: Situation, *, prepared: bool, trained: bool, captions: str
) -> dict[str, Said]:
    """Conditions of the stages. `prepared` and `trained` say whether the facts are about what the
    spec asks for, `captions` is `spec.captions.mode`."""
    quota = situation.quota
    told: dict[str, Said] = {"QuotaReserved": (quota.holds, quota.reason, quota.message)}
    told |= _prepared(facts, captions) if prepared else _unprepared(situation)
    names = ", ".join(artifact.name for artifact in facts.artifacts)
    if trained:
        told["Trained"] = (True, "Trained", "the step targets are reached")
        told["Exported"] = (True, "Published", f"published: {names}")
        if situation.stage == EXPORT:
            told["Exported"] = (False, situation.reason, situation.message)
        return told
    failed = situation.kind is Kind.FAILED and situation.stage == TRAIN
    reason = situation.reason if failed else "NotYet"
    told["Trained"] = (False, reason, situation.message if failed else "not yet trained")
    older = f"; of an earlier run: {names}" if names else ""
    told["Exported"] = (False, reason, f"not yet published{older}")
    return told


def stages_as_before(facts: Facts, situation: Situation) -> dict[str, Said]:
    """Conditions of the stages as they were: what is asked now cannot be told."""
    told = stages(facts, situation, prepared=False, trained=False, captions="")
    for old in facts.conditions:
        if old.type in told:
            told[old.type] = (old.status == "True", old.reason, old.message)
    return told


def _prepared(facts: Facts, captions: str) -> dict[str, Said]:
    dataset, model = facts.dataset, facts.base_model
    if dataset is None or model is None:
        return _pending("NotYet", "not yet prepared")
    refused = f", {dataset.rejected} refused" if dataset.rejected else ""
    told = {
        "DatasetReady": (True, "Prepared", f"{dataset.images} pictures{refused}"),
        "ModelReady": (True, "Verified", f"base model {model.name} is verified"),
        "CaptionsReady": (
            True,
            "FromFiles",
            f"{dataset.captioned} of {dataset.images} pictures have a caption of their own",
        ),
        "Approved": (True, "AutoApproved", "review: Auto approves what could be prepared"),
    }
    if captions == "None":
        told["CaptionsReady"] = (True, "NotRequested", "every picture takes the instance prompt")
    return told


def _unprepared(situation: Situation) -> dict[str, Said]:
    if situation.stage == PREPARE and situation.kind in {Kind.FAILED, Kind.RETRYING}:
        return _pending(situation.reason, situation.message)
    if situation.stage == FETCH:
        told = _pending("NotYet", "the base model is not yet in the store")
        told["ModelReady"] = (False, situation.reason, situation.message)
        return told
    return _pending("NotYet", "not yet prepared")


def _pending(reason: str, message: str) -> dict[str, Said]:
    return {
        "DatasetReady": (False, reason, message),
        "ModelReady": (False, reason, message),
        "CaptionsReady": (False, "NotYet", "the pictures are not yet prepared"),
        "Approved": (False, "NotYet", "the pictures are not yet prepared"),
    }


def _fitting(progress: Progress | None, situation: Situation) -> Progress | None:
    """Progress of the stage that is under way; a prepare's is no news once training begins."""
    if progress is None or situation.stage in {"", EXPORT, PURGE}:
        return progress
    return progress if stage_of(progress) == situation.stage else None


def _phase(situation: Situation, progress: Progress | None) -> str:
    if progress is None:
        return telling.phase(situation, working="Starting")
    training = _TRAINING_PHASES.get(progress.stage, "Training")
    return telling.phase(situation, working=training)
