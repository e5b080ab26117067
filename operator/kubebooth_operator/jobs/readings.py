"""Observed manifests → what they say about an object of ours, its Jobs and their pods.

Knows the shapes of Kubernetes objects so that nobody else here has to; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from kubebooth_api.exitcodes import REASONS, ExitCode
from kubebooth_api.runs import RunReport
from kubebooth_api.v1alpha1.conversion import ModelConversionStatus
from kubebooth_api.v1alpha1.session import DreamboothSessionStatus
from pydantic import ValidationError

from kubebooth_operator.doors import ChildRef, Manifest, Observed
from kubebooth_operator.jobs import names
from kubebooth_operator.jobs.children import WORKER
from kubebooth_operator.resources import FINALIZER

F = TypeVar("F", DreamboothSessionStatus, ModelConversionStatus)
"""The status of a kind: the facts that are remembered once Jobs are gone."""


@dataclass(frozen=True)
class Problem:
    """What keeps a pod from running."""

    reason: str
    message: str


@dataclass(frozen=True)
class Pod:
    """One try of a worker, as its pod tells it."""

    name: str
    stage: str
    job_uid: str
    created_at: datetime | None
    phase: str
    terminating: bool
    scheduled: bool
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    reason: str
    """CamelCase reason of the end; empty while it runs."""
    last_words: str
    """Termination message as text."""
    disrupted: bool
    report: RunReport | None
    problem: Problem | None

    @property
    def ended(self) -> bool:
        """Whether no process of it can be alive."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def preempted(self) -> bool:
        """Whether it was interrupted rather than broken."""
        return self.exit_code == ExitCode.PREEMPTED or (
            self.disrupted and self.exit_code not in (0, 64, 65)
        )


@dataclass(frozen=True)
class Job:
    """One Job of ours and its pods, oldest first."""

    name: str
    namespace: str
    uid: str
    stage: str
    series: str
    work: str
    target: str
    config_map: str
    terminating: bool
    suspended: bool
    result: str | None
    """`Complete` or `Failed`; None while unfinished."""
    finished_at: datetime | None
    reason: str
    message: str
    pods: tuple[Pod, ...]

    @property
    def finished(self) -> bool:
        """Whether the Job controller is done with it."""
        return self.result is not None

    @property
    def report(self) -> RunReport | None:
        """The newest report of a pod that says it succeeded."""
        for pod in reversed(self.pods):
            report = pod.report
            if report is not None and report.outcome == "Succeeded" and report.kind == self.stage:
                return report
        return None

    @property
    def ref(self) -> ChildRef:
        """How to delete it: its name stays taken until its last pod has ended."""
        return ChildRef("batch/v1", "Job", self.namespace, self.name, self.uid, foreground=True)


@dataclass(frozen=True)
class Seen(Generic[F]):
    """An object of ours and everything seen of its children."""

    kind: str
    name: str
    namespace: str
    uid: str
    generation: int
    spec: Mapping[str, Any]
    deleting: bool
    finalizers: tuple[str, ...]
    retry_token: str
    disabled: bool
    status: F
    """The facts that status keeps; empty when it cannot be read."""
    raw_status: Mapping[str, Any]
    jobs: Mapping[str, Job]
    """By stage."""
    pods: tuple[Pod, ...]
    """All worker pods, also those whose Job is gone."""
    config_maps: Mapping[str, ChildRef]
    """Run ConfigMaps by name."""

    @property
    def has_finalizer(self) -> bool:
        """Whether deletion waits for us."""
        return FINALIZER in self.finalizers


def read(observed: Observed, status: type[F]) -> Seen[F]:
    """Everything a plan asks about the observed objects; `status` is the kind's own."""
    parent = observed.parent
    metadata = parent["metadata"]
    annotations = metadata.get("annotations") or {}
    kinds = _by_kind(observed.children)
    pods = sorted(
        (_pod(manifest, observed.reports) for manifest in kinds["Pod"]),
        key=lambda pod: (pod.created_at.timestamp() if pod.created_at else 0.0, pod.name),
    )
    jobs = [_job(manifest, pods) for manifest in kinds["Job"]]
    raw_status = parent.get("status") or {}
    return Seen(
        kind=parent["kind"],
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=int(metadata.get("generation") or 0),
        spec=parent.get("spec") or {},
        deleting=bool(metadata.get("deletionTimestamp")),
        finalizers=tuple(metadata.get("finalizers") or ()),
        retry_token=annotations.get(names.RETRY_ANNOTATION, ""),
        disabled=annotations.get(names.RECONCILE_ANNOTATION) == "disabled",
        status=_status(raw_status, status),
        raw_status=raw_status,
        jobs={job.stage: job for job in jobs if job.stage},
        pods=tuple(pods),
        config_maps={
            m["metadata"]["name"]: ChildRef(
                "v1",
                "ConfigMap",
                m["metadata"]["namespace"],
                m["metadata"]["name"],
                m["metadata"].get("uid"),
            )
            for m in kinds["ConfigMap"]
            if _stage(m["metadata"])
        },
    )


def _by_kind(children: Iterable[Manifest]) -> dict[str, list[Manifest]]:
    kinds: dict[str, list[Manifest]] = {"Job": [], "Pod": [], "ConfigMap": []}
    for child in children:
        kinds.setdefault(child.get("kind", ""), []).append(child)
    return kinds


def _status(raw: Mapping[str, Any], status: type[F]) -> F:
    # A status of another version or another hand is no fact: workers find theirs in the store.
    try:
        return status.parse(raw)
    except ValidationError:
        return status()


def _stage(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("labels") or {}).get(names.STAGE_LABEL, "")).capitalize()


def _job(manifest: Manifest, pods: Iterable[Pod]) -> Job:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    annotations = metadata.get("annotations") or {}
    spec = manifest.get("spec") or {}
    end = _condition(status, "Complete") or _condition(status, "Failed") or {}
    return Job(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        stage=_stage(metadata),
        series=annotations.get(names.SERIES_ANNOTATION, ""),
        work=annotations.get(names.WORK_ANNOTATION, ""),
        target=annotations.get(names.TARGET_ANNOTATION, ""),
        config_map=_run_config_map(spec),
        terminating=bool(metadata.get("deletionTimestamp")),
        suspended=bool(spec.get("suspend")),
        result=end.get("type"),
        finished_at=_time(status.get("completionTime") or end.get("lastTransitionTime")),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        pods=tuple(pod for pod in pods if pod.job_uid == metadata["uid"]),
    )


def _run_config_map(spec: Mapping[str, Any]) -> str:
    template = (spec.get("template") or {}).get("spec") or {}
    for volume in template.get("volumes") or ():
        if volume.get("name") == "run":
            return str((volume.get("configMap") or {}).get("name", ""))
    return ""


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None


def _pod(manifest: Manifest, reports: Mapping[str, RunReport]) -> Pod:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    container = _worker_container(status)
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    running = state.get("running") or {}
    code = ended.get("exitCode")
    report = reports.get(metadata["name"])
    return Pod(
        name=metadata["name"],
        stage=_stage(metadata),
        job_uid=_owner(metadata),
        created_at=_time(metadata.get("creationTimestamp")),
        phase=status.get("phase") or "Pending",
        terminating=bool(metadata.get("deletionTimestamp")),
        scheduled=_condition(status, "PodScheduled") is not None,
        started_at=_time(ended.get("startedAt") or running.get("startedAt")),
        finished_at=_time(ended.get("finishedAt")),
        exit_code=code,
        reason=_reason(code, ended, status, report),
        last_words=str(ended.get("message") or ""),
        disrupted=_condition(status, "DisruptionTarget") is not None,
        report=report,
        problem=_problem(status, state),
    )


def _worker_container(status: Mapping[str, Any]) -> Mapping[str, Any]:
    statuses = status.get("containerStatuses") or ()
    for container in statuses:
        if container.get("name") == WORKER:
            found: Mapping[str, Any] = container
            return found
    return {}


def _owner(metadata: Mapping[str, Any]) -> str:
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller") is True:
            return str(reference.get("uid", ""))
    return ""


def _reason(
    code: int | None,
    ended: Mapping[str, Any],
    status: Mapping[str, Any],
    report: RunReport | None,
) -> str:
    if code is None:
        return str(status.get("reason") or "") if status.get("phase") == "Failed" else ""
    if ended.get("reason") == "OOMKilled":
        return REASONS[ExitCode.OUT_OF_MEMORY]
    if report is not None and code != 0:
        return report.reason
    if code in REASONS:
        return REASONS[ExitCode(code)]
    return "Killed" if code > 128 else "UnknownExitCode"


def _problem(status: Mapping[str, Any], state: Mapping[str, Any]) -> Problem | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Problem(
                condition.get("reason") or "Unschedulable", condition.get("message") or ""
            )
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in (None, "", "ContainerCreating", "PodInitializing"):
        return None
    return Problem(waiting["reason"], waiting.get("message") or "")


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None
