"""Where targets appear on disk: written beside under a hidden name, shown by one rename.

It must not know formats. What stood there before stays until the new one is proven.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from kubebooth_trainer.convert.writing.local import full_or
from kubebooth_trainer.errors import ConfigurationError, StorageFault

_MARK = ".kubebooth-part-"
_EXCHANGE = 2
_AT_FDCWD = -100
_SPARE_BYTES = 1 << 20


@contextlib.contextmanager
def staged(target: Path, *, is_folder: bool, size: int, overwrite: bool) -> Iterator[Path]:
    """A hidden file or folder beside the target, which takes its place when the block ends well.

    What killed runs left beside the target is removed. Raises `ConfigurationError` when the target
    is there and must not be overwritten, `StorageFault` when the disk is too small.
    """
    refuse_taken(target, overwrite=overwrite, is_folder=is_folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        free = os.statvfs(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    if free.f_bavail * free.f_frsize < size + _SPARE_BYTES:
        raise StorageFault(
            f"{target.parent} has {free.f_bavail * free.f_frsize} bytes free and {size} are needed;"
            " free space or name another place",
            reason="NoSpace",
        )
    place = target.parent / f".{target.name}{_MARK}{uuid.uuid4().hex[:12]}"
    try:
        if is_folder:
            _make_folder(place)
        else:
            place.touch(mode=0o644)
        lock = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield place
        show(place, target, is_folder=is_folder, overwrite=overwrite)
    except OSError as error:
        raise full_or(error) from error
    finally:
        os.close(lock)
        _remove(place)


def refuse_taken(target: Path, *, overwrite: bool, is_folder: bool) -> None:
    """Raise `ConfigurationError` when a target is there that must stay."""
    if not os.path.lexists(target):
        return
    if target.is_symlink():
        raise ConfigurationError(f"{target} is a link; name a place of its own")
    if target.is_dir() != is_folder:
        raise ConfigurationError(
            f"{target} is a {'folder' if target.is_dir() else 'file'} and would become the other;"
            " name another place",
            reason="TargetExists",
        )
    if not overwrite:
        raise ConfigurationError(
            f"{target} exists already; allow replacing it with --overwrite, or name another place",
            reason="TargetExists",
        )


def show(place: Path, target: Path, *, is_folder: bool, overwrite: bool) -> None:
    """Give what was written its name in one step. Raises `OSError`, `ConfigurationError`."""
    if is_folder and overwrite and target.is_dir():
        _exchange(place, target)
    elif overwrite and not is_folder:
        place.replace(target)
    elif is_folder:
        # A folder cannot take the name of another one that has something in it.
        place.rename(target)
    else:
        try:
            os.link(place, target)
        except FileExistsError as error:
            raise ConfigurationError(
                f"{target} appeared meanwhile; nothing was written", reason="TargetExists"
            ) from error
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            place.rename(target)
    sync(target.parent)


def _exchange(place: Path, target: Path) -> None:
    """Two folders exchange their names in one step, where the system can; else in two."""
    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "renameat2", None)
    if function is not None:
        names = os.fsencode(place), os.fsencode(target)
        if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
            return
    old = place.with_name(f"{place.name}-old")
    target.rename(old)
    place.rename(target)
    _remove(old)


def sync(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def created(path: Path, *, durable: bool) -> Iterator[int]:
    """A descriptor of a new file, readable by all; its bytes are durable when the block ends."""
    _make_folder(path.parent)
    # Not truncated: it is new, and ext4 would flush a truncated file when it is closed.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)
        yield descriptor
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """A folder that all may read, whatever the process's mask is."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)


def _sweep(target: Path) -> None:
    """Remove what killed runs left: whoever still writes holds a lock."""
    for left in target.parent.glob(f".{_escaped(target.name)}{_MARK}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> ConfigurationError | StorageFault:
    known = full_or(error)
    if isinstance(known, StorageFault):
        return known
    return ConfigurationError(
        f"{target}: {error.strerror or error}; name a place that can be written"
    )
