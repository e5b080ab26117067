"""What is kept on disk of each container, so that an agent started anew can go on; no logic."""

import dataclasses
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubebooth_cluster.files import read_json, write_json
from kubebooth_cluster.node.launch import Launched
from kubebooth_cluster.node.settings import Object, now
from kubebooth_cluster.processes import ProcessId


@dataclass(frozen=True)
class Exit:
    """How one attempt of a container ended; times as Kubernetes writes them."""

    code: int
    reason: str
    started_at: str
    finished_at: str
    container_id: str
    message: str = ""

    def as_state(self) -> Object:
        """The `terminated` state of a container status."""
        state: Object = {
            "exitCode": self.code,
            "reason": self.reason,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "containerID": self.container_id,
        }
        if self.code > 128 and self.reason in ("Error", "OOMKilled"):
            state["signal"] = self.code - 128
        return state | ({"message": self.message} if self.message else {})


@dataclass(frozen=True)
class Record:
    """The newest attempt of a container, and how the one before it ended.

    `number` counts restarts. The processes are None when it could not be started.
    """

    number: int
    gpus: tuple[int, ...] = ()
    launched: Launched | None = None
    exit: Exit | None = None
    previous: Exit | None = None
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    started_at: str = field(default_factory=now)
    container_id: str = field(default_factory=lambda: f"bwrap://{uuid.uuid4().hex}")


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole."""
    write_json(path, dataclasses.asdict(record))
    path.chmod(0o600)


def read_record(path: Path) -> Record | None:
    """The record of a file, or None."""
    document: dict[str, Any] | None = read_json(path)
    if document is None:
        return None
    launched = document["launched"]
    if launched is not None:
        launched = Launched(ProcessId(**launched["monitor"]), ProcessId(**launched["child"]))
    exits = {
        key: Exit(**document[key]) if document[key] is not None else None
        for key in ("exit", "previous")
    }
    rest = {key: value for key, value in document.items() if key not in ("launched", *exits)}
    rest["gpus"] = tuple(rest["gpus"])
    return Record(launched=launched, exit=exits["exit"], previous=exits["previous"], **rest)
