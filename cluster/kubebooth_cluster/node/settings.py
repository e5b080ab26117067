"""What one node agent is told at its start, and the clock in Kubernetes' spelling."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """One node: its name, where it keeps pods, what it offers and how patient it is.

    `pod_prefix` is the first two numbers of pod addresses ("127.77"). `cpus` and
    `memory_bytes` are what the node offers; None is what the machine has.
    """

    name: str
    folder: Path
    kubeconfig: Path
    pki: Path
    pod_prefix: str
    bwrap: Path
    gpus: int = 0
    cpus: int | None = None
    memory_bytes: int | None = None
    backoff_base_s: float = 10
    backoff_cap_s: float = 300
    pods_die_with_agent: bool = False
    refresh_volumes_s: float = 60


def now() -> str:
    """The time in UTC as Kubernetes writes it, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime.datetime:
    """The moment that Kubernetes wrote as `text`."""
    return datetime.datetime.fromisoformat(text)


def age_s(text: str) -> float:
    """Seconds since the moment that Kubernetes wrote as `text`."""
    return (datetime.datetime.now(datetime.UTC) - parse_time(text)).total_seconds()
