"""How much memory a container's processes use, and the end of one that uses too much."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kubebooth_cluster import processes
from kubebooth_cluster.processes import ProcessId

_INTERVAL_S = 0.25


def family(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    for thread in _listed(Path(f"/proc/{pid}/task")):
        with suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from family(int(child))


def _listed(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _kib(path: str, *keys: str) -> int:
    """The sum of some lines of a /proc file; 0 when the process is gone."""
    total = 0
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(keys):
                total += int(line.split()[1])
    return total


def used_bytes(pid: int, *, limit_bytes: int) -> int:
    """The memory of a process family that cannot be given back: no pages of files.

    The cheap count has what forked processes share several times, so one that comes out
    above the limit is done again with shared pages divided.
    """
    pids = list(family(pid))
    resident = sum(_kib(f"/proc/{one}/status", "RssAnon:", "RssShmem:") for one in pids) * 1024
    if resident <= limit_bytes or len(pids) == 1:
        return resident
    return sum(_kib(f"/proc/{one}/smaps_rollup", "Pss_Anon:", "Pss_Shmem:") for one in pids) * 1024


async def exceeded(child: ProcessId, *, limit_bytes: int) -> None:
    """Return once the container uses more than its limit."""
    while processes.is_alive(child):
        if used_bytes(child.pid, limit_bytes=limit_bytes) > limit_bytes:
            return
        await asyncio.sleep(_INTERVAL_S)
    await asyncio.Event().wait()
