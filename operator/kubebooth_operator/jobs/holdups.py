"""What keeps a worker pod from running → a reason and the cure, for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kubebooth_operator.jobs.readings import Job, Pod, Problem
from kubebooth_operator.jobs.work import Place, Work

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}


def of(
    job: Job, alive: Sequence[Pod], *, work: Work, place: Place, queue: str | None
) -> Problem | None:
    """The hold-up of an unfinished Job with its living pods; None when there is none."""
    if job.suspended:
        where = f"queue {queue} has not admitted it" if queue else "someone else suspended it"
        return Problem("QueuePending", f"Job {job.name} is suspended: {where}")
    for pod in reversed(alive):
        if pod.problem is not None:
            return _explain(pod.problem, work, place)
    return None


def _explain(problem: Problem, work: Work, place: Place) -> Problem:
    said = problem.message.rstrip(".")
    if problem.reason == "Unschedulable":
        return Problem(
            "Unschedulable",
            f"no node takes the pod: {said}; free or add one, or change"
            " spec.runtime.resources, nodeSelector or tolerations",
        )
    if problem.reason in _IMAGE:
        return Problem(
            "ImagePullBackOff",
            f"the worker's image cannot be pulled: {said}; check spec.runtime.image,"
            " imagePullSecrets and the installation's trainer image",
        )
    if problem.reason == "CreateContainerConfigError" and "secret" in said.lower():
        return _secret(said, work, place)
    return Problem(problem.reason, f"the worker's container waits: {said}")


def _secret(said: str, work: Work, place: Place) -> Problem:
    """Which Secret is missing or incomplete, and who names it."""
    namespace = work.run.session.namespace
    for token in work.tokens:
        named = re.search(rf"(?<![a-z0-9.-]){re.escape(token.ref.name)}(?![a-z0-9.-])", said)
        if named and token.ref.name != place.secret:
            return Problem(
                "TokenMissing",
                f"{said}; create Secret {token.ref.name} with the key {token.ref.key} in namespace"
                f" {namespace}, or name another in {token.path}",
            )
    return Problem(
        "CredentialsMissing",
        f"{said}; create Secret {place.secret} with the keys accessKey and secretKey in namespace"
        f" {namespace}, or name another in spec.storage.credentialsSecretRef",
    )
