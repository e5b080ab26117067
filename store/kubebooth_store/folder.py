"""A store in a plain folder: the same verbs and promises as S3, kept by rename, fsync and a lock.

Every write goes to `.kubebooth/tmp/`, is flushed to disk and then takes its name under an
exclusive `flock` of `.kubebooth/lock`, so conditions hold among all processes that use this
class. Programs that write into the folder by other means are not bound by the lock.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kubebooth_store import naming
from kubebooth_store.content import blocks, hash_of, open_plain
from kubebooth_store.downloading import save
from kubebooth_store.errors import Conflict, Corrupt, NotFound, Refused, files_named
from kubebooth_store.keys import OWN, check_key, check_prefix, check_span, join, key_below
from kubebooth_store.listing import is_index
from kubebooth_store.verbs import Entry, OnBytes

_SMALL_BYTES = 64 * 1024


class FolderStore:
    """Files below one folder; see `verbs.Store` for the promises."""

    def __init__(self, root: Path, *, timeout_s: float) -> None:
        self._root = root.resolve()
        self._timeout_s = timeout_s

    @property
    def uri(self) -> str:
        """`file:///folder`."""
        return self._root.as_uri().rstrip("/")

    @property
    def parallel(self) -> int:
        """Transfers that may usefully run at once."""
        return 1

    def uri_of(self, key: str) -> str:
        """Full address of a key or prefix."""
        return join(self.uri, check_prefix(key)) if key else self.uri

    def key_of(self, uri: str) -> str:
        """Key of an address below this store; `Refused` for another."""
        return key_below(self.uri, uri)

    def create_root(self) -> None:
        """Make the folder when it is missing."""
        with files_named(self._root):
            self._root.mkdir(parents=True, exist_ok=True)

    def stat(self, key: str) -> Entry | None:
        """The entry of a key, or None."""
        try:
            with self._opened(key) as descriptor:
                return _entry(key, descriptor)
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[Entry]:
        """All entries below a prefix, sorted by the bytes of their keys."""
        below = check_prefix(prefix)
        with files_named(self.uri_of(below)):
            top = naming.plain_path(self._root, below) if below else self._root
        if not top.is_dir():
            return
        for key in _walk(top, below):
            entry = self.stat(key)
            if entry is not None:
                yield entry

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """Whole content; `Refused` when it is larger than `max_bytes`."""
        return self.read_entry(key, max_bytes=max_bytes)[0]

    def read_entry(self, key: str, *, max_bytes: int) -> tuple[bytes, Entry]:
        """Whole content and its entry, both of one version."""
        with self._opened(key) as descriptor:
            entry = _entry(key, descriptor)
            if entry.size > max_bytes:
                raise Refused(
                    f"{self.uri_of(key)} has {entry.size} bytes, more than the {max_bytes} "
                    "allowed; download it instead"
                )
            data = b"".join(blocks(descriptor, start=0, size=entry.size))
        return data, entry

    def write(
        self,
        key: str,
        data: bytes,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        content_type: str | None = None,
    ) -> Entry:
        """Replace a key as a whole; `Conflict` when the condition does not hold."""
        del content_type  # a folder keeps none
        if if_absent and if_match is not None:
            raise Refused("if_absent and if_match exclude each other")
        check_key(key)
        with naming.staged(self._root, [data], on_bytes=None) as (staged, digest):
            return self._show(staged, key, digest, if_absent=if_absent, if_match=if_match)

    def open_range(self, key: str, *, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`."""
        if start < 0 or length < 0:
            raise Refused(f"range {start}+{length} of {key!r} is negative")
        with self._opened(key) as descriptor:
            return b"".join(_pieces(descriptor, start, length))

    def read_at(self, entry: Entry, *, start: int, length: int) -> bytes:
        """Exactly `length` bytes of just this version; `Conflict` when it was replaced."""
        check_span(entry, start, length)
        with self._opened(entry.key) as descriptor:
            if not _is_version(entry, descriptor):
                raise Conflict(f"{self.uri_of(entry.key)} was replaced meanwhile; start again")
            return b"".join(blocks(descriptor, start=start, size=length))

    @contextlib.contextmanager
    def writing(self, key: str, *, size: int) -> Iterator[naming.Written]:
        """Make a file while it is stored; it is shown when the block ends well."""
        check_key(key)
        with naming.unseen(self._root, key, size=size) as (path, written):
            yield written
            written.entry_is(self._show(path, key, written.finish()))

    def download(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        size: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Entry:
        """Put a file at `path`, verified and by rename; a second call resumes a broken one."""
        with self._opened(key) as descriptor:
            return save(
                lambda start, length: _pieces(descriptor, start, length),
                _entry(key, descriptor),
                path,
                what=self.uri_of(key),
                parallel=1,
                sha256=sha256,
                size=size,
                on_bytes=on_bytes,
            )

    def upload(
        self,
        path: Path,
        key: str,
        *,
        sha256: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Entry:
        """Store a copy of a file; skips what is there."""
        check_key(key)
        source = open_plain(path)
        try:
            size = os.fstat(source).st_size
            same = self._same(key, source, size=size, sha256=sha256)
            if same is not None:
                if on_bytes is not None:
                    on_bytes(size)
                return same
            pieces = blocks(source, start=0, size=size)
            staging = naming.staged(self._root, pieces, on_bytes=on_bytes)
            with staging as (staged, digest):
                if sha256 not in {None, digest}:
                    raise Corrupt(f"{path} is not what was asked to store: its SHA-256 differs")
                return self._show(staged, key, digest)
        finally:
            os.close(source)

    def _same(self, key: str, source: int, *, size: int, sha256: str | None) -> Entry | None:
        """The entry of a key that already holds a file's bytes."""
        there = self.stat(key)
        if there is None or there.size != size:
            return None
        with self._opened(key) as descriptor:
            stored = hash_of(blocks(descriptor, start=0, size=size))
        ours = hash_of(blocks(source, start=0, size=size))
        if ours != stored or sha256 not in {None, ours}:
            return None
        return Entry(key, size, there.etag, stored)

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""
        with files_named(self.uri_of(key)):
            naming.remove(self._root, key, timeout_s=self._timeout_s)

    def delete_prefix(self, prefix: str) -> int:
        """Remove all below a prefix, manifests and pointers first; how many keys went."""
        keys = [entry.key for entry in self.list(prefix)]
        for key in sorted(keys, key=lambda key: not is_index(key)):
            self.delete(key)
        return len(keys)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """A read-only descriptor of a key's file."""
        with files_named(self.uri_of(key)):
            path = naming.plain_path(self._root, key)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(path, flags)
            except NotADirectoryError as error:
                raise NotFound(f"{self.uri_of(key)} does not exist") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotFound(f"{self.uri_of(key)} is no file")
            yield descriptor
        finally:
            os.close(descriptor)

    def _show(
        self,
        staged: Path,
        key: str,
        digest: str,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> Entry:
        """Give a staged file its name if the condition holds."""
        shown: list[Entry] = []

        def check() -> None:
            there = self.stat(key)
            if if_match is not None and (there is None or there.etag != if_match):
                raise Conflict(
                    f"{self.uri_of(key)}: someone else wrote first; read it again and decide anew"
                )
            shown.append(self._entry_of(staged, key, digest))

        with files_named(self.uri_of(key)):
            naming.show(
                self._root,
                staged,
                key,
                timeout_s=self._timeout_s,
                only_new=if_absent,
                check=check,
            )
        return shown[0]

    def _entry_of(self, staged: Path, key: str, digest: str) -> Entry:
        """What a staged file will be once it is shown: a rename changes none of it."""
        descriptor = open_plain(staged)
        try:
            entry = _entry(key, descriptor)
        finally:
            os.close(descriptor)
        return Entry(key, entry.size, entry.etag, digest)


def _entry(key: str, descriptor: int) -> Entry:
    """The entry of an open file. The version tag is the content's SHA-256 for small files such
    as pointers, which is exact; for larger ones inode, time of change and size."""
    status = os.fstat(descriptor)
    if status.st_size > _SMALL_BYTES:
        tag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
        return Entry(key, status.st_size, tag, None)
    digest = hash_of(blocks(descriptor, start=0, size=status.st_size))
    return Entry(key, status.st_size, digest, digest)


def _is_version(entry: Entry, descriptor: int) -> bool:
    """Whether an open file is the version of an entry; small ones are told by their content."""
    status = os.fstat(descriptor)
    if status.st_size <= _SMALL_BYTES:
        return _entry(entry.key, descriptor).etag == entry.etag
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}" == entry.etag


def _walk(top: Path, prefix: str) -> Iterator[str]:
    """Keys of the plain files below a folder, links left out, in the order S3 lists them."""
    with files_named(top), os.scandir(top) as found:
        rows = [
            (f"{row.name}/" if row.is_dir(follow_symlinks=False) else row.name, row)
            for row in found
            if not row.is_symlink() and not (prefix == "" and row.name == OWN)
        ]
    for name, row in sorted(rows, key=lambda pair: os.fsencode(pair[0])):
        key = join(prefix, row.name)
        if name.endswith("/"):
            yield from _walk(Path(row.path), key)
        elif row.is_file(follow_symlinks=False):
            yield key


def _pieces(descriptor: int, start: int, length: int) -> Iterator[bytes]:
    size = os.fstat(descriptor).st_size
    return blocks(descriptor, start=start, size=max(0, min(length, size - start)))
