"""One file from the network to a path: resumed where it broke, bounded, verified.

A broken, stalled or short answer is asked again from the byte that is missing; a file whose digest
is wrong is thrown away and asked once more from the start. It must not know hubs.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from kubebooth_trainer.errors import ConfigurationError, DataError, Preempted
from kubebooth_trainer.fetch.network import Network, Reply, Unreachable, shown

BLOCK_BYTES = 1 << 17
SLOWEST_BYTES = 64 << 10
"""A source that sends less than this in `Network.timeout_s` counts as stalled."""
TRIES_WITHOUT_PROGRESS = 5
FIRST_PAUSE_S = 1.0
"""Doubled with every try that brought nothing."""


@dataclass(frozen=True)
class Wanted:
    """A file and how it is recognised."""

    url: str
    name: str
    """What to call it towards the user."""
    size: int | None = None
    sha256: str | None = None
    """64 hex digits."""
    git_sha1: str | None = None
    """SHA-1 of the file as a git blob, which hubs tell of small files; used without `sha256`."""
    most_bytes: int = 1 << 40


@dataclass(frozen=True)
class Got:
    """What arrived."""

    size: int
    sha256: str


def download(
    network: Network,
    wanted: Wanted,
    path: Path,
    *,
    token: str | None,
    stop: Event,
    on_bytes: Callable[[int], None],
) -> Got:
    """Bring a file to `path`; what an earlier call left in `path`.part is gone on with.

    `on_bytes` hears how many bytes are there beyond the last call, less when some were thrown away.
    Raises `DataError` for content that is not what was promised, `ConfigurationError` for what may
    not be asked, `Unreachable` when it kept breaking, `Preempted` when `stop` is set.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    told = 0

    def tell() -> int:
        nonlocal told
        there = part.stat().st_size if part.exists() else 0
        on_bytes(there - told)
        told = there
        return there

    wrong, idle = 0, 0
    while True:
        before = tell()
        try:
            complete = _go_on(network, wanted, part, token=token, stop=stop, tell=tell)
        except Unreachable:
            idle = 0 if tell() > before else idle + 1
            if idle >= TRIES_WITHOUT_PROGRESS:
                raise
            _rest(stop, FIRST_PAUSE_S * 2**idle, wanted)
            continue
        if not complete:
            continue
        try:
            got = _verified(wanted, part)
        except DataError:
            part.unlink()
            tell()
            wrong += 1
            if wrong > 1:
                raise
            continue
        os.replace(part, path)
        return got


def _go_on(
    network: Network,
    wanted: Wanted,
    part: Path,
    *,
    token: str | None,
    stop: Event,
    tell: Callable[[], int],
) -> bool:
    """Ask for what is missing; False when it must be asked again from the start."""
    there = part.stat().st_size if part.exists() else 0
    if wanted.size is not None and there >= wanted.size:
        return True
    headers = {"range": f"bytes={there}-"} if there else {}
    with network.get(wanted.url, token=token, headers=headers) as reply:
        if reply.status == 416 and there:
            if _total(reply) == there:
                return True
            part.unlink()
            return False
        refuse_status(reply, wanted.name)
        if there and (reply.status != 206 or not _begins_at(reply, there)):
            # The source cannot go on in the middle.
            part.unlink()
            there = 0
            if reply.status == 206:
                return False
        whole = _length(reply, there)
        _check_size(wanted, whole)
        _copy(network, wanted, reply, part, stop=stop, tell=tell)
    there = part.stat().st_size
    expected = wanted.size if wanted.size is not None else whole
    if expected is not None and there < expected:
        raise Unreachable(f"{wanted.name}: the answer ended at byte {there} of {expected}")
    return True


def _copy(
    network: Network,
    wanted: Wanted,
    reply: Reply,
    part: Path,
    *,
    stop: Event,
    tell: Callable[[], int],
) -> None:
    limit = wanted.size if wanted.size is not None else wanted.most_bytes
    window_at, window_bytes = time.monotonic(), 0
    with part.open("ab") as file:
        for block in reply.body.stream(BLOCK_BYTES):
            if stop.is_set():
                raise Preempted(f"stopped while fetching {wanted.name}; what is there is kept")
            if file.tell() + len(block) > limit:
                file.truncate(0)
                raise DataError(
                    f"{wanted.name}: the source sends more than the {limit} bytes it promised or"
                    " may send; check the address",
                    reason="SourceInvalid",
                )
            file.write(block)
            file.flush()
            tell()
            window_bytes += len(block)
            elapsed = time.monotonic() - window_at
            if elapsed > network.timeout_s:
                if window_bytes < SLOWEST_BYTES:
                    raise Unreachable(
                        f"{wanted.name}: {window_bytes} bytes in {elapsed:.0f} s; it has stalled"
                    )
                window_at, window_bytes = time.monotonic(), 0


def refuse_status(reply: Reply, name: str) -> None:
    """Raise what an HTTP status means; nothing for 200 and 206."""
    status, code = reply.status, reply.headers.get("x-error-code", "")
    if status in (200, 206):
        return
    where = f"{name} ({shown(reply.url)})"
    if status in (401, 403):
        gate = (
            " The repository is gated: accept its licence with the account of the token."
            if code == "GatedRepo"
            else ""
        )
        raise ConfigurationError(
            f"{where}: access is denied (HTTP {status}); name a Secret with a token that may read"
            f" it.{gate}",
            reason="SourceDenied",
        )
    if status in (404, 410):
        raise ConfigurationError(
            f"{where}: there is nothing there (HTTP {status}); check repository, revision and"
            " address",
            reason="SourceNotFound",
        )
    if status in (408, 425, 429) or status >= 500:
        raise Unreachable(f"{where}: HTTP {status}")
    raise ConfigurationError(f"{where}: HTTP {status}", reason="SourceRefused")


def _check_size(wanted: Wanted, whole: int | None) -> None:
    if wanted.size is not None and whole is not None and whole != wanted.size:
        raise DataError(
            f"{wanted.name}: the source has {whole} bytes, but {wanted.size} were promised; it"
            " changed or lies",
            reason="SourceInvalid",
        )
    if whole is not None and whole > wanted.most_bytes:
        raise DataError(
            f"{wanted.name}: {whole} bytes are more than the {wanted.most_bytes} allowed",
            reason="SourceInvalid",
        )


def _verified(wanted: Wanted, part: Path) -> Got:
    size = part.stat().st_size
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if wanted.sha256 is not None:
            _compare(wanted, "SHA-256", sha256, wanted.sha256)
        elif wanted.git_sha1 is not None:
            file.seek(0)
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := file.read(BLOCK_BYTES):
                blob.update(block)
            _compare(wanted, "git SHA-1", blob.hexdigest(), wanted.git_sha1)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    return Got(size, sha256)


def _compare(wanted: Wanted, kind: str, found: str, promised: str) -> None:
    if found != promised:
        raise DataError(
            f"{wanted.name}: {kind} is {found}, but {promised} was promised; the file was altered"
            " on its way or the source lies",
            reason="DigestMismatch",
        )


def _length(reply: Reply, there: int) -> int | None:
    """Size of the whole file by the headers, if they tell."""
    if reply.status == 206:
        return _total(reply)
    length = reply.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _total(reply: Reply) -> int | None:
    total = reply.headers.get("content-range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _begins_at(reply: Reply, there: int) -> bool:
    return reply.headers.get("content-range", "").startswith(f"bytes {there}-")


def _rest(stop: Event, seconds: float, wanted: Wanted) -> None:
    if stop.wait(min(seconds, 30.0)):
        raise Preempted(f"stopped while fetching {wanted.name}; what is there is kept")
