"""Files and folders wherever they stand, on disk or in a store; it must not know what is in them.

Standard library only, so that a conversion on disk starts light; a store is handed in by whoever
opened it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubebooth_trainer.convert.door import Bytes
from kubebooth_trainer.errors import ConfigurationError, DataError

MAX_FILES = 10_000
"""Files a folder of a model may have."""
_DEPTH = 4


class LocalFile:
    """A plain file of a disk, open for reading; see `door.Bytes`."""

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path = path
        self._name = name or path.name
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise unreadable(path, error) from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ConfigurationError(f"{path} is no plain file; name a file")
        self._size = status.st_size

    @property
    def name(self) -> str:
        """What to call it towards the user."""
        return self._name

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    @property
    def descriptor(self) -> int | None:
        """File descriptor for copies inside the kernel."""
        return self._descriptor

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises `DataError` where the file ends before."""
        check_span(self, start, length)
        pieces = []
        while length:
            try:
                piece = os.pread(self._descriptor, length, start)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not piece:
                raise shortened(self.name, start)
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Give the descriptor back; a second time is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class Folder(Protocol):
    """Files below one folder, wherever it stands."""

    @property
    def name(self) -> str:
        """What to call it towards the user."""

    @property
    def files(self) -> Mapping[str, int]:
        """Size in bytes of each file, by relative path."""

    def open(self, path: str) -> Bytes:
        """One of `files`."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of a disk; links to files are followed, as caches of hubs are made of them."""

    path: Path
    files: Mapping[str, int]

    @property
    def name(self) -> str:
        """What to call it towards the user."""
        return self.path.name or str(self.path)

    def open(self, path: str) -> Bytes:
        """One of `files`."""
        return LocalFile(self.path / path, name=path)


def local_folder(path: Path) -> LocalFolder:
    """List a folder of a disk. Raises `ConfigurationError` and `DataError`."""
    try:
        files = dict(_walk(path, "", depth=_DEPTH))
    except OSError as error:
        raise unreadable(path, error) from error
    return LocalFolder(path, checked_files(files, str(path)))


def checked_files(files: dict[str, int], name: str) -> dict[str, int]:
    """The files in order of their names. Raises `DataError` when they are too many."""
    if len(files) > MAX_FILES:
        raise DataError(
            f"{name} holds more than {MAX_FILES} files; name the folder of one model",
            reason="NoModel",
        )
    return dict(sorted(files.items()))


def _walk(folder: Path, prefix: str, *, depth: int) -> Iterator[tuple[str, int]]:
    count = 0
    with os.scandir(folder) as rows:
        for row in rows:
            count += 1
            if count > MAX_FILES:
                return
            if row.name.startswith("."):
                continue
            if row.is_dir(follow_symlinks=False) and depth > 0:
                yield from _walk(Path(row.path), f"{prefix}{row.name}/", depth=depth - 1)
            elif row.is_file():
                yield prefix + row.name, row.stat().st_size


def check_span(file: Bytes, start: int, length: int) -> None:
    """Raise `DataError` for bytes outside of a file."""
    if start < 0 or length < 0 or start + length > file.size:
        raise shortened(file.name, file.size)


def shortened(name: str, at: int) -> DataError:
    """A file that ends too early."""
    return DataError(
        f"{name} ends at byte {at}, in the middle of what it must hold: it was cut off; copy or"
        " download it again",
        reason="TruncatedFile",
    )


def unreadable(path: Path, error: OSError) -> ConfigurationError:
    """A path that cannot be read at all."""
    return ConfigurationError(
        f"{path}: {error.strerror or error}; name a file or folder that can be read",
        reason="SourceNotFound" if isinstance(error, FileNotFoundError) else None,
    )
