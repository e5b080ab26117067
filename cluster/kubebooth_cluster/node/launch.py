"""Starts a container's process and tells how it ended; it must not know why it was started.

bubblewrap's own outer process is the shim: it outlives the agent and leaves the exit
code in a file, so that an agent started anew can take the container over.
"""

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster import processes
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.processes import ProcessId

# Stands for a process that ended before it could be seen.
NOBODY = ProcessId(0, 0)

_ARGS_FD, _STATUS_FD = 10, 11
_NICENESS = 5
_START_S = 20


@dataclass(frozen=True)
class Launched:
    """The outer bwrap process and the container's first process, as this machine sees them."""

    monitor: ProcessId
    child: ProcessId


def marker(folder: Path) -> str:
    """The first word in the process list of every container kept below `folder`."""
    return f"kubebooth-pod:{folder}/"


async def launch(
    program: Path,
    options: Sequence[str],
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    status: Path,
) -> Launched:
    """Start `command` in a sandbox. Its child is no living process if it ended at once.

    `name` becomes argv[0]. Raises ClusterError when bwrap cannot be started.
    """
    try:
        pid = _spawn(program, options, command, name=name, log=log, status=status)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot start {program}: {error}") from error
    return await _identified(pid, status)


def _spawn(
    program: Path,
    options: Sequence[str],
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    status: Path,
) -> int:
    """Start bwrap; its options travel in memory, for the process list must not show a Secret."""
    status.write_text("")
    arguments = os.memfd_create("bwrap-arguments")
    opened = [arguments]
    try:
        os.write(arguments, b"".join(os.fsencode(word) + b"\0" for word in options))
        os.lseek(arguments, 0, os.SEEK_SET)
        report = os.open(status, os.O_WRONLY | os.O_APPEND)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        opened += [report, output, nothing]
        # Moved out of the way, so that no duplicate lands on one that is still needed.
        opened += [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _ARGS_FD + 10) for one in opened]
        arguments, report, output, nothing = opened[4:]
        return os.posix_spawn(
            program,
            [name, "--args", str(_ARGS_FD), "--json-status-fd", str(_STATUS_FD), "--", *command],
            {"PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                (os.POSIX_SPAWN_DUP2, arguments, _ARGS_FD),
                (os.POSIX_SPAWN_DUP2, report, _STATUS_FD),
            ],
            setsid=True,
        )
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def _identified(pid: int, status: Path) -> Launched:
    """Wait until the command itself runs inside the finished sandbox, or has ended.

    Until then the child still has our root: nothing may be run inside it.
    """
    monitor = processes.identify(pid) or ProcessId(pid, 0)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        number = _reported(status, "child-pid")
        child = None if number is None else processes.identify(number)
        if child is not None and _has_own_command(child.pid, pid):
            for process in (monitor, child):
                # The control plane and the agent must answer while pods keep all cores busy.
                with suppress(ProcessLookupError):
                    os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            return Launched(monitor, child)
        if processes.identify(pid) is None:
            break
        await asyncio.sleep(0.002)
    if processes.is_alive(monitor):
        for process in (*_children(pid), monitor):
            processes.send(process, signal.SIGKILL)
        raise ClusterError(f"a sandbox was not ready in {_START_S} s: is the machine overloaded?")
    return Launched(monitor, NOBODY)


def _children(pid: int) -> list[ProcessId]:
    """The living children of a process."""
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [child for number in numbers if (child := processes.identify(int(number)))]


def _has_own_command(child: int, monitor: int) -> bool:
    """Whether the child is no longer a copy of bwrap."""
    try:
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (child, monitor)]
    except OSError:
        return False
    return lines[0] != lines[1]


def _reported(status: Path, key: str) -> int | None:
    try:
        lines = status.read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        with suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict) and key in document:
                return int(document[key])
    return None


def exit_code(status: Path) -> int | None:
    """The code that the container's first process ended with (128+n for signal n), if known."""
    return _reported(status, "exit-code")


async def ended(process: ProcessId) -> None:
    """Wait until the process is gone; it need not be a child of ours."""
    if process == NOBODY:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        if processes.identify(process.pid) == process:
            loop.add_reader(descriptor, gone.set)
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        reap(process.pid)


def reap(pid: int) -> None:
    """Collect an ended child, so that it does not stay as a zombie."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def signal_container(launched: Launched, number: signal.Signals) -> None:
    """Signal the container's first process; SIGKILL there ends every process of it."""
    processes.send(launched.child, number)


def monitors(folder: Path) -> dict[ProcessId, str]:
    """The living bwrap processes of all containers below `folder`, each with its name."""
    prefix = marker(folder).encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            line = Path(entry.path, "cmdline").read_bytes()
            process = processes.identify(int(entry.name)) if line.startswith(prefix) else None
            if process is not None and not _is_inner(process):
                found[process] = os.fsdecode(line.split(b"\0")[0])
    return found


def _is_inner(process: ProcessId) -> bool:
    """Whether it is a container's first process that is not yet its own program."""
    fields = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    numbers = next((line.split()[1:] for line in fields if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def leftovers(folder: Path) -> list[ProcessId]:
    """The first processes of all containers below `folder` that still run on this machine."""
    # Without a child bwrap is just starting or ending: then it is the one to end.
    return [one for process in monitors(folder) for one in _children(process.pid) or [process]]


def kill_leftovers(folder: Path, *, but: Collection[str] = ()) -> int:
    """SIGKILL every container below `folder` but those of these names; returns how many."""
    total = 0
    while remaining := [one for one, name in monitors(folder).items() if name not in but]:
        total += len(remaining)
        for monitor in remaining:
            for process in (*_children(monitor.pid), monitor):
                processes.kill(process)
                reap(process.pid)
    return total


async def recover(name: str, folder: Path, status: Path) -> Launched | None:
    """What an earlier agent started under `name` without living to note it; None if nothing.

    One that has ended already comes back as processes that are no more.
    """
    for monitor, found in monitors(folder).items():
        if found == name:
            return await _identified(monitor.pid, status)
    return Launched(NOBODY, NOBODY) if _reported(status, "child-pid") is not None else None
