"""A stored file becomes a local one: resumed, verified, then shown by rename; it knows no server.

While it is under way the bytes stand beside the target in `.kubebooth-<name>-<version>.part`,
which is always a true beginning of the file; after a kill the next call goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kubebooth_store.content import BLOCK_BYTES, sync_folder
from kubebooth_store.errors import Conflict, Corrupt, Refused, Unavailable, files_named
from kubebooth_store.naming import write_all
from kubebooth_store.verbs import Entry, OnBytes
from kubebooth_store.windows import in_order

RANGE_BYTES = 8 << 20
ReadRange = Callable[[int, int], Iterable[bytes]]


def save(
    read_range: ReadRange,
    entry: Entry,
    path: Path,
    *,
    what: str,
    parallel: int,
    sha256: str | None = None,
    size: int | None = None,
    on_bytes: OnBytes | None = None,
) -> Entry:
    """Bring an entry's bytes to `path`.

    `read_range(start, length)` must give the bytes, in pieces, of just this version of the entry.
    Raises `Corrupt` when size or digest are not the expected ones, `Conflict` when another
    process brings it.
    """
    wanted = sha256 or entry.sha256
    if size is not None and entry.size != size:
        raise Corrupt(f"{what} has {entry.size} bytes instead of {size}; publish it again")
    if path.is_dir():
        raise Refused(f"{path} is a folder; name the file that {what} shall become")
    tell = on_bytes or (lambda _count: None)
    with files_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part_file(path, entry) as (part, descriptor):
            digest = _fill(descriptor, read_range, entry, parallel=parallel, tell=tell)
            if wanted not in {None, digest}:
                # The beginning on disk or a byte on its way was damaged: once more from nothing.
                tell(-entry.size)
                os.ftruncate(descriptor, 0)
                digest = _fill(descriptor, read_range, entry, parallel=parallel, tell=tell)
            if wanted is not None and digest != wanted:
                part.unlink()
                raise _damaged(what, digest, wanted)
            os.fsync(descriptor)
            part.replace(path)
            sync_folder(path.parent)
    return Entry(entry.key, entry.size, entry.etag, digest)


def _damaged(what: str, digest: str, wanted: str) -> Corrupt:
    return Corrupt(
        f"{what} has SHA-256 {digest[:12]}… instead of {wanted[:12]}…; "
        "the store or the path to it damages bytes: publish it again"
    )


@contextlib.contextmanager
def _part_file(path: Path, entry: Entry) -> Iterator[tuple[Path, int]]:
    """The locked part file of one version; those of other versions are removed."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    version = hashlib.sha256(f"{entry.etag}\0{entry.size}".encode()).hexdigest()[:12]
    part = path.parent / f".kubebooth-{name}-{version}.part"
    for stale in path.parent.glob(f".kubebooth-{name}-*.part"):
        if stale != part:
            stale.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"another process brings {path}; wait for it") from error
        yield part, descriptor
    finally:
        os.close(descriptor)


def _fill(
    descriptor: int, read_range: ReadRange, entry: Entry, *, parallel: int, tell: OnBytes
) -> str:
    """Append what is missing to a part file; SHA-256 of the whole, in hex."""
    done = min(os.fstat(descriptor).st_size, entry.size)
    os.ftruncate(descriptor, done)
    hasher = hashlib.sha256()
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, BLOCK_BYTES):
        hasher.update(block)
        tell(len(block))
    spans = (
        (start, min(RANGE_BYTES, entry.size - start))
        for start in range(done, entry.size, RANGE_BYTES)
    )
    for pieces in in_order(lambda span: read_range(*span), spans, parallel=parallel):
        for piece in pieces:
            hasher.update(piece)
            write_all(descriptor, piece)
            tell(len(piece))
    if os.fstat(descriptor).st_size != entry.size:
        raise Unavailable(f"{entry.key} arrived with a wrong length; try again")
    return hasher.hexdigest()
