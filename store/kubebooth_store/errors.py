"""What can go wrong with a store: the only place where exceptions of others become ours.

    StoreError              anything below
    ├── NotFound            no such key, prefix or bucket
    ├── Conflict            a condition was lost: someone else wrote first
    ├── Corrupt             bytes, sizes or digests are not what they should be
    ├── Unavailable         away, slow, full or failing; the same call may succeed later
    ├── Denied              wrong credentials, missing rights, or a link where a file should be
    ├── Unsupported         the server does not know what was asked of it
    └── Refused             the call itself is wrong: a bad key, address, range or folder

Every message is one sentence or two that name the key and the cure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StoreError(Exception):
    """Root of all errors of a store; `retryable` says whether the same call may succeed later."""

    retryable = False


class NotFound(StoreError):
    """No such key, prefix or bucket."""


class Conflict(StoreError):
    """A condition was lost: someone else wrote first."""


class Corrupt(StoreError):
    """Bytes, sizes or digests are not what they should be."""


class Unavailable(StoreError):
    """Away, slow, full or failing; the same call may succeed later."""

    retryable = True


class Denied(StoreError):
    """Wrong credentials, missing rights, or a link where a plain file should be."""


class Unsupported(StoreError):
    """The server does not know what was asked of it."""


class Refused(StoreError, ValueError):
    """The call itself is wrong: a bad key, address, range or folder."""


_FULL = {errno.ENOSPC, errno.EDQUOT}
_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}
_SHAPE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}


def from_os_error(error: OSError, what: str | Path) -> StoreError:
    """The error of ours that says what an `OSError` about a file means."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what} does not exist")
    if error.errno in _FULL:
        return Unavailable(f"{what}: the disk is full; free space or enlarge the volume")
    if error.errno in _RIGHTS:
        return Denied(f"{what}: {error.strerror}; give this user the right to it")
    if error.errno == errno.ELOOP:
        return Denied(f"{what} is a link; a store holds plain files only, so copy the file itself")
    if error.errno in _SHAPE:
        return Conflict(f"{what}: a file and a folder want the same name; choose another key")
    if error.errno == errno.ENAMETOOLONG:
        return Refused(f"{what}: the name is too long for this file system; shorten it")
    return Unavailable(f"{what}: {error.strerror or error}; check the disk and try again")


@contextmanager
def files_named(what: str | Path) -> Iterator[None]:
    """Turn any `OSError` inside into a `StoreError` that names a file or key."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, what) from error
