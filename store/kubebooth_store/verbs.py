"""The verbs every store has; it must not know which kinds of store there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

OnBytes = Callable[[int], None]
"""Told the number of further bytes done, from the calling thread; the sum is the file's size."""


@dataclass(frozen=True)
class Entry:
    """One stored file as the store sees it."""

    key: str
    size: int
    """Size in bytes."""
    etag: str
    """Opaque version tag for conditions, without quotes."""
    sha256: str | None
    """64 hex digits where the store tells it (S3: on `stat`, `write`, `upload`), else absent."""


class Writer(Protocol):
    """A file that is made while it is stored; nobody sees it before `Store.writing` ends well.

    It is written front to back, with room left for what is known only later. Memory is bounded by
    a few parts, and by one more for each that has room left in it.
    """

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    def leave(self, length: int) -> int:
        """Leave room for so many bytes; gives the position at which it begins."""

    def fill(self, start: int, data: bytes) -> None:
        """Fill room that was left at a position."""

    @property
    def entry(self) -> Entry:
        """What was stored, once `Store.writing` has ended well; without SHA-256 where room was
        left, as it can only be taken in order."""


class Store(Protocol):
    """A place for files by key, on S3 or in a folder, with the same promises.

    Whatever was acknowledged survives a crash of client and server; a key shows its old bytes or
    its new ones, never a mixture. All verbs raise the errors of `kubebooth_store.errors`.
    """

    @property
    def uri(self) -> str:
        """Root address without a final slash."""

    @property
    def parallel(self) -> int:
        """Transfers that may usefully run at once."""

    def uri_of(self, key: str) -> str:
        """Full address of a key or prefix."""

    def key_of(self, uri: str) -> str:
        """Key of an address; `Refused` when it lies in a foreign store."""

    def create_root(self) -> None:
        """Make the bucket or folder when it is missing."""

    def stat(self, key: str) -> Entry | None:
        """The entry of a key, or None when there is none."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """All entries below a folder-like prefix, sorted by the bytes of their keys."""

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """Whole content; `Refused` when it is larger than `max_bytes`."""

    def read_entry(self, key: str, *, max_bytes: int) -> tuple[bytes, Entry]:
        """Whole content and the entry it belongs to."""

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

    def open_range(self, key: str, *, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`, fewer at the end of the file."""

    def read_at(self, entry: Entry, *, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start` of just this version of a file.

        Raises `Conflict` when it was replaced meanwhile, `Refused` outside of its size.
        """

    def writing(self, key: str, *, size: int) -> AbstractContextManager[Writer]:
        """Make a file of known size while it is stored, without a local disk.

        It is shown as a whole when the block ends well, and never when the block raises. Raises
        `Refused` when other than `size` bytes are written.
        """

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

    def upload(
        self,
        path: Path,
        key: str,
        *,
        sha256: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Entry:
        """Store a file with bounded memory; skips what is there, resumes what was begun."""

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""

    def delete_prefix(self, prefix: str) -> int:
        """Remove all below a prefix, manifests and pointers first; how many keys went."""
