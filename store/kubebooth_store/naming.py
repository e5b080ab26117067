"""How a file of a folder store takes and loses its name: staged, flushed, locked, renamed.

It knows paths and conditions; it must not know what is in the files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kubebooth_store.content import BLOCK_BYTES, blocks, hash_of, sync_folder
from kubebooth_store.errors import Conflict, Denied, Refused, Unavailable, files_named
from kubebooth_store.keys import OWN, check_key
from kubebooth_store.verbs import Entry, OnBytes

_STALE_S = 24 * 3600
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def plain_path(root: Path, key: str) -> Path:
    """Where a key stands; `Denied` when a link leads there, so that nothing can escape."""
    path = root
    for part in check_key(key).split("/"):
        path = path / part
        if path.is_symlink():
            raise Denied(f"{path} is a link; a store holds plain files only, copy them instead")
    return path


@contextlib.contextmanager
def staged(
    root: Path, pieces: Iterable[bytes], *, on_bytes: OnBytes | None
) -> Iterator[tuple[Path, str]]:
    """Bytes on disk under a name nobody sees, and their SHA-256 in hex."""
    with files_named(root):
        folder = root / OWN / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        path = folder / uuid.uuid4().hex
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    hasher = hashlib.sha256()
    try:
        with files_named(path), open(descriptor, "wb", buffering=0):
            os.fchmod(descriptor, 0o644)
            for piece in pieces:
                hasher.update(piece)
                write_all(descriptor, piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
            os.fsync(descriptor)
        yield path, hasher.hexdigest()
    finally:
        path.unlink(missing_ok=True)


class Written:
    """A staged file that is being written; see `verbs.Writer`."""

    def __init__(self, descriptor: int, key: str, *, size: int) -> None:
        self._descriptor = descriptor
        self._key = key
        self._size = size
        self._position = 0
        self._missing: dict[int, int] = {}
        self._entry: Entry | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._advance(len(data))
        with files_named(self._key):
            write_all(self._descriptor, data)

    def leave(self, length: int) -> int:
        """Leave room for so many bytes; gives where it begins."""
        start = self._position
        self._advance(length)
        self._missing[start] = length
        with files_named(self._key):
            write_all(self._descriptor, bytes(length))
        return start

    def fill(self, start: int, data: bytes) -> None:
        """Fill room that was left."""
        if self._missing.get(start) != len(data):
            raise Refused(f"{self._key}: no such room was left at byte {start}")
        with files_named(self._key):
            os.pwrite(self._descriptor, data, start)
        del self._missing[start]

    def finish(self) -> str:
        """Make the bytes durable; SHA-256 in hex."""
        if self._position != self._size or self._missing:
            raise Refused(f"{self._key}: {self._position} of {self._size} bytes were written")
        with files_named(self._key):
            os.fsync(self._descriptor)
            return hash_of(blocks(self._descriptor, start=0, size=self._size))

    def entry_is(self, entry: Entry) -> None:
        """Told what it became."""
        self._entry = entry

    @property
    def entry(self) -> Entry:
        """What was stored."""
        if self._entry is None:
            raise Refused(f"{self._key} is not stored yet; end its block first")
        return self._entry

    def _advance(self, count: int) -> None:
        if self._position + count > self._size:
            raise Refused(f"{self._key}: more than the {self._size} bytes announced were written")
        self._position += count


@contextlib.contextmanager
def unseen(root: Path, key: str, *, size: int) -> Iterator[tuple[Path, Written]]:
    """A staged file to write into; it is removed when it was not given a name."""
    with files_named(root):
        folder = root / OWN / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        path = folder / uuid.uuid4().hex
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "r+b", buffering=0):
            os.fchmod(descriptor, 0o644)
            yield path, Written(descriptor, key, size=size)
    finally:
        path.unlink(missing_ok=True)


def show(
    root: Path, path: Path, key: str, *, timeout_s: float, only_new: bool, check: Callable[[], None]
) -> None:
    """Give a staged file its name, in one step, if `check` does not raise under the lock.

    Raises `Conflict` when `only_new` and the name is taken.
    """
    place = plain_path(root, key)
    with locked(root, timeout_s=timeout_s):
        check()
        _make_folders(place.parent)
        if only_new:
            _link(path, place)
        else:
            path.replace(place)
        sync_folder(place.parent)


def remove(root: Path, key: str, *, timeout_s: float) -> None:
    """Remove a file and the folders that are empty without it; a missing one is fine."""
    place = plain_path(root, key)
    with locked(root, timeout_s=timeout_s):
        try:
            place.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        sync_folder(place.parent)
        for parent in place.parents:
            if parent == root or any(parent.iterdir()):
                return
            parent.rmdir()


@contextlib.contextmanager
def locked(root: Path, *, timeout_s: float) -> Iterator[None]:
    """Be the only writer among all processes that use this store; `Unavailable` in the end."""
    own = root / OWN
    own.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"{own / 'lock'}: another writer holds it for {timeout_s:g} s; "
                    "end that process or try again"
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of the bytes, however often the system takes only some."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest[:BLOCK_BYTES]) :]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except FileExistsError as error:
        raise Conflict(f"{place} exists already; nothing was written") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Some file systems know no hard links; the lock keeps this apart from other writers.
        if place.exists():
            raise Conflict(f"{place} exists already; nothing was written") from error
        path.replace(place)


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(mode=0o755, exist_ok=True)
    sync_folder(folder.parent)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left behind a day ago."""
    oldest = time.time() - _STALE_S
    for left in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < oldest:
                left.unlink()
