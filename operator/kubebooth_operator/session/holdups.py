"""What keeps a worker pod from running → a reason and the cure, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubebooth_operator.session.readings import Job, Pod, Problem

if TYPE_CHECKING:
    from kubebooth_operator.session.steps import Context

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}


def of(job: Job, alive: Sequence[Pod], context: Context) -> Problem | None:
    """The hold-up of an unfinished Job with its living pods; None when there is none."""
    if job.suspended:
        queue = context.spec.runtime.queue_name
        where = f"queue {queue} has not admitted it" if queue else "someone else suspended it"
        return Problem("QueuePending", f"Job {job.name} is suspended: {where}")
    for pod in reversed(alive):
        if pod.problem is not None:
            return _explain(pod.problem, context)
    return None


def _explain(problem: Problem, context: Context) -> Problem:
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
        secret = context.place.secret
        return Problem(
            "CredentialsMissing",
            f"{said}; create Secret {secret} with the keys accessKey and secretKey in namespace"
            f" {context.session.namespace}, or name another in"
            " spec.storage.credentialsSecretRef",
        )
    return Problem(problem.reason, f"the worker's container waits: {said}")
