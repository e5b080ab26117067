"""Reads worker pods as they are observed: last words and addresses. Everything read is hostile."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from kubebooth_api.runs import REPORT_LIMIT_BYTES, RunReport, WorkerStatus
from pydantic import ValidationError

WORKER_CONTAINER = "worker"
PROGRESS_PORT = 8080


def report_of(pod: Mapping[str, Any]) -> RunReport | None:
    """The last word of an ended worker; None while it runs and when it left nothing readable."""
    terminated = _terminated(pod)
    message = terminated.get("message")
    if not isinstance(message, str) or not 0 < len(message) <= REPORT_LIMIT_BYTES:
        return None
    try:
        return RunReport.model_validate_json(message)
    except ValidationError:
        return None


def address_of(pod: Mapping[str, Any]) -> str | None:
    """`host:port` of the progress server of a running worker; None when there is none."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    if status.get("phase") != "Running" or metadata.get("deletionTimestamp"):
        return None
    if _terminated(pod):
        return None
    try:
        address = ipaddress.ip_address(status.get("podIP", ""))
    except ValueError:
        return None
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{PROGRESS_PORT}"


def worker_status(text: bytes) -> WorkerStatus | None:
    """What a worker said of its progress; None when it is not readable."""
    try:
        return WorkerStatus.model_validate_json(text)
    except ValidationError:
        return None


def newest_worker(pods: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """UID and `host:port` of the youngest running worker among pods."""
    running = [
        (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["uid"], address)
        for pod in pods
        if (address := address_of(pod)) is not None
    ]
    return max(running)[1:] if running else None


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") == WORKER_CONTAINER:
            ended = (status.get("state") or {}).get("terminated")
            return ended if isinstance(ended, Mapping) else {}
    return {}
