"""Finds the newest worker pod of a session, reads its log and makes its lines readable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kubebooth_cli.cluster import Cluster
from kubebooth_cli.errors import CliError

_LABELS = {"session": "kubebooth.io/session", "mconv": "kubebooth.io/conversion"}


def newest_pod(cluster: Cluster, session: str) -> str:
    """Name of the newest worker pod that has or had a container running.

    Raises `CliError` that says why when there is none.
    """
    kind, slash, own = session.partition("/")
    label = _LABELS["mconv" if slash else "session"]
    listed = cluster.get(
        cluster.path("pods"), labelSelector=f"app.kubernetes.io/managed-by=kubebooth,{label}"
    )
    pods = [pod for pod in listed["items"] if _belongs(pod, label, own if slash else kind)]
    if not pods:
        raise CliError(
            f"{session} has no worker pod now",
            f"kubebooth status {session} tells what it waits for",
        )
    pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    started = [pod for pod in pods if _has_started(pod)]
    if not started:
        name = pods[-1]["metadata"]["name"]
        raise CliError(f"pod {name} has not started: {_why_pending(pods[-1])}")
    return str(started[-1]["metadata"]["name"])


def lines(cluster: Cluster, pod: str, *, follow: bool, tail: int | None) -> Iterator[str]:
    """The log of a pod line by line."""
    query = {"follow": "true"} if follow else {}
    if tail is not None:
        query["tailLines"] = str(tail)
    yield from cluster.lines(f"{cluster.path('pods', pod)}/log", **query)


def friendly(line: str) -> str:
    """A line of JSON as `21:38:30 info progress stage=Denoiser step=1`; others as they are."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or "msg" not in fields:
        return line
    at = str(fields.pop("ts", ""))[11:19]
    level, message = fields.pop("level", ""), fields.pop("msg")
    fields.pop("logger", None)
    more = " ".join(f"{key}={_short(value)}" for key, value in fields.items())
    return f"{at} {level:<7} {message}  {more}".strip()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _belongs(pod: Mapping[str, Any], label: str, owner: str) -> bool:
    value = str(pod["metadata"]["labels"][label])
    # Names that are too long for a label are cut there and end in a digest.
    return value == owner or (len(owner) > 63 and value.startswith(owner[:50].rstrip(".-")))


def _has_started(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    states = [c.get("state") or {} for c in status.get("containerStatuses") or ()]
    return any("running" in state or "terminated" in state for state in states)


def _why_pending(pod: Mapping[str, Any]) -> str:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("message"):
            return str(condition["message"])
    return "it waits for a node (kubectl describe pod tells more)"
