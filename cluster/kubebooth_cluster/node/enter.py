"""Runs a command inside a running container, for probes and hooks; it must not know which."""

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Sequence

from kubebooth_cluster.processes import ProcessId

_NS_GET_USERNS = 0xB701
_OUTPUT_CHARACTERS = 1000


def _owner_of_mounts(child: ProcessId) -> int:
    """A descriptor of the user namespace that owns the container's mounts.

    bwrap makes two when it changes the user: the mounts belong to the outer one, and
    an ordinary user must stand in that to enter them.
    """
    mounts = os.open(f"/proc/{child.pid}/ns/mnt", os.O_RDONLY)
    try:
        return fcntl.ioctl(mounts, _NS_GET_USERNS)
    finally:
        os.close(mounts)


def _command(child: ProcessId, owner: int, command: Sequence[str], workdir: str) -> list[str]:
    inner = os.stat(f"/proc/{child.pid}/ns/user").st_ino
    # Then into the container's own user namespace, where it has no power over the mounts.
    second = (
        ["nsenter", "--user=/proc/1/ns/user", "--preserve-credentials", "--"]
        if os.fstat(owner).st_ino != inner
        else []
    )
    return [
        *("nsenter", "--target", str(child.pid), f"--user=/proc/self/fd/{owner}"),
        *("--preserve-credentials", "--mount", "--pid", "--ipc", "--uts", f"--wdns={workdir}"),
        *("--", *second, *command),
    ]


async def run_inside(
    child: ProcessId, command: Sequence[str], environment: dict[str, str], *, workdir: str
) -> tuple[int, str]:
    """Run `command` inside the container to its end: exit code and the end of what it printed.

    Raises OSError when the container is gone.
    """
    # nsenter itself starts outside: a pod must not choose which libraries it loads.
    safe = {key: value for key, value in environment.items() if not key.startswith("LD_")}
    owner = _owner_of_mounts(child)
    try:
        process = await asyncio.create_subprocess_exec(
            *_command(child, owner, command, workdir),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=safe,
            pass_fds=(owner,),
        )
    finally:
        os.close(owner)
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")[-_OUTPUT_CHARACTERS:]
