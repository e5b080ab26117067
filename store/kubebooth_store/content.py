"""Facts about local files and bytes: sizes, SHA-256 whole and by part; it knows no store."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kubebooth_store.errors import Corrupt, Denied, files_named

BLOCK_BYTES = 1 << 20
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Part:
    """A slice of a file, sent as one request."""

    number: int
    """1 for the first, as S3 counts."""
    start: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Facts:
    """A file as it was when it was measured."""

    size: int
    sha256: str
    parts: tuple[Part, ...]
    stamp: tuple[int, int, int]
    """Inode, size and time of change: what differs when the file was touched."""


def open_plain(path: Path) -> int:
    """A read-only descriptor of a plain file; `Denied` for anything else."""
    with files_named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Denied(f"{path} is no plain file; name a file")
    return descriptor


def stamp_of(descriptor: int) -> tuple[int, int, int]:
    """What differs when the file was touched."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


def blocks(descriptor: int, *, start: int, size: int) -> Iterator[bytes]:
    """The bytes of a slice; `Corrupt` when the file is shorter by now."""
    done = 0
    while done < size:
        block = os.pread(descriptor, min(BLOCK_BYTES, size - done), start + done)
        if not block:
            raise Corrupt("the file was shortened while it was read; wait until it is complete")
        done += len(block)
        yield block


def measure(descriptor: int, *, part_bytes: Callable[[int], int]) -> Facts:
    """Hash a file once, whole and part by part; `part_bytes` gives the part size for a size."""
    stamp = stamp_of(descriptor)
    size = stamp[1]
    step = max(1, part_bytes(size))
    whole = hashlib.sha256()
    parts = []
    # Both digests of one block at once, so that the parts are those of the whole for certain.
    with ThreadPoolExecutor(max_workers=1) as beside:
        for number, start in enumerate(range(0, max(size, 1), step), 1):
            length = min(step, size - start)
            single = hashlib.sha256()
            for block in blocks(descriptor, start=start, size=length):
                hashed = beside.submit(whole.update, block)
                single.update(block)
                hashed.result()
            parts.append(Part(number, start, length, single.hexdigest()))
    return Facts(size, whole.hexdigest(), tuple(parts), stamp)


def file_sha256(path: Path) -> str:
    """SHA-256 of a plain file in hex."""
    descriptor = open_plain(path)
    try:
        return hash_of(blocks(descriptor, start=0, size=os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


def hash_of(pieces: Iterable[bytes]) -> str:
    """SHA-256 of pieces in hex."""
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def md5_of(descriptor: int, part: Part) -> str:
    """MD5 of a part in hex: what S3 servers give as the part's version tag, no safeguard."""
    hasher = hashlib.md5(usedforsecurity=False)
    for block in blocks(descriptor, start=part.start, size=part.size):
        hasher.update(block)
    return hasher.hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
