"""The doors between watching, deciding and acting; plain frozen data that knows no cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubebooth_api.runs import RunReport, WorkerStatus

Manifest = Mapping[str, Any]
"""A Kubernetes object as the JSON-shaped mapping that the API server gives or takes."""


@dataclass(frozen=True)
class Key:
    """Names one object to reconcile."""

    plural: str
    namespace: str
    name: str


@dataclass(frozen=True)
class ChildRef:
    """Names one child object; `uid` guards a delete against a successor of the same name.

    With `foreground` the object stays, marked as terminating, until its own children are gone
    (`propagationPolicy: Foreground`): a Job keeps its name until its last pod has ended.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str | None = None
    foreground: bool = False


@dataclass(frozen=True)
class Observed:
    """All that is known of one object: never more than was last seen, perhaps stale."""

    parent: Manifest
    """The custom resource as last seen."""
    children: tuple[Manifest, ...] = ()
    """Objects whose controller owner is the parent: Jobs, ConfigMaps, ModelConversions; and the
    Jobs' Pods."""
    reports: Mapping[str, RunReport] = field(default_factory=dict)
    """Last words of ended worker pods, by pod name, read from termination messages."""
    sessions: Mapping[str, Manifest] = field(default_factory=dict)
    """DreamboothSessions of the namespace that the parent refers to, directly or through others,
    by name; those that do not exist are absent."""
    worker: WorkerStatus | None = None
    """What the running worker said last; absent when none runs or answers."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about the parent."""

    type: str
    """`Normal` or `Warning`."""
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What should be: applied in the order delete, apply, status, finalizers."""

    apply: tuple[Manifest, ...] = ()
    """Children to server-side apply, whole."""
    delete: tuple[ChildRef, ...] = ()
    """Children to delete: in the background, or in the foreground where a `ChildRef` says so."""
    status: Manifest | None = None
    """The whole desired status; absent leaves it. Written only when it differs."""
    finalizer: bool | None = None
    """Whether the parent should carry our finalizer; absent leaves it as it is."""
    events: tuple[Event, ...] = ()
    """Events that tell of a change; emitted only when the status write succeeded."""
    poll_progress: bool = False
    """Whether a worker runs whose port should be asked before the next reconcile."""
    requeue_after_s: float | None = None
    """Look again after so many seconds even if nothing happens."""
    decision: str = ""
    """One line for the log: why this plan."""


PlanFunction = Callable[[Observed, datetime], Plan]
"""`(observed, now) -> Plan`: pure; settings are bound when the operator starts."""


class Waiting(Exception):
    """Not now: something outside is missing. Carries reason, message and when to look again."""

    def __init__(self, reason: str, message: str, *, delay_s: float = 30.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.delay_s = delay_s


class Stalled(Exception):
    """Not without a change of the spec. Carries reason and a message with field and cure."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
