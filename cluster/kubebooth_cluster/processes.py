"""Long-lived child processes, known by id and start time; it must not know what they do.

A process id alone can be reused by a stranger after a crash, so nothing here
ever signals one whose start time is not the recorded one.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster.errors import ClusterError

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class ProcessId:
    """A process for certain: its id and its start time in clock ticks since boot."""

    pid: int
    started_ticks: int


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may hold spaces and brackets: fields are counted from the last bracket.
    return text.rpartition(")")[2].split()


def identify(pid: int) -> ProcessId | None:
    """The identity of the living process `pid`, or None (a zombie counts as dead)."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs."""
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
    return identify(process.pid) == process


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    die_with_parent: bool = False,
) -> ProcessId:
    """Start `argv` in a session of its own, its output appended to `log`.

    With `die_with_parent` the kernel kills it when the calling thread ends.
    Raises ClusterError when the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env) if env is not None else None,
                cwd=folder,
                start_new_session=True,
                preexec_fn=_die_with_parent if die_with_parent else None,
            )
        except OSError as error:
            raise ClusterError(f"cannot start {argv[0]}: {error}") from error
    _children[child.pid] = child
    process = identify(child.pid)
    # A program that ended at once has no identity left; any start time fits a dead one.
    return process or ProcessId(child.pid, 0)


def send(process: ProcessId, number: signal.Signals) -> None:
    """Signal exactly this process, if it still runs."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_gone(process: ProcessId, *, timeout_s: float) -> bool:
    """Whether the process ended within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(process: ProcessId) -> None:
    """SIGKILL, and wait until it is gone. Raises ClusterError when it stays for 10 s."""
    send(process, signal.SIGKILL)
    if not wait_gone(process, timeout_s=10):
        raise ClusterError(f"process {process.pid} does not end on SIGKILL: is its disk hung?")


def stop(process: ProcessId, *, grace_s: float) -> None:
    """SIGTERM, then SIGKILL after `grace_s` seconds."""
    send(process, signal.SIGTERM)
    if not wait_gone(process, timeout_s=grace_s):
        kill(process)


def tail(log: Path, *, size_bytes: int = 2000) -> str:
    """The last bytes of a log as text, for an error message."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - size_bytes))
        return stream.read().decode(errors="replace")
