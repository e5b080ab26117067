"""A file that is made while it is stored: parts leave as they are full, nothing is on a disk.

Memory holds the part that is being filled, those on their way, and those with room left in them.
Nothing is visible before `complete`. It must not know what the bytes mean.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from kubebooth_store import listing, multipart
from kubebooth_store.content import Part
from kubebooth_store.errors import Conflict, Corrupt, NotFound, Refused, StoreError
from kubebooth_store.listing import Upload
from kubebooth_store.wire import Body, Call, Wire

_PART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_AT_ONCE = 2
_MIB = 1 << 20


def part_bytes(size: int) -> int:
    """Part size for a file that is made while it is stored: 8 MiB, or what keeps it within 10,000
    parts."""
    return max(_PART_BYTES, -(-size // (_MAX_PARTS * _MIB)) * _MIB)


@dataclass
class _Buffer:
    """The bytes of one part, some of which may still be missing."""

    number: int
    size: int
    filled: int = 0
    """Bytes up to which it was written."""
    missing: int = 0
    """Bytes of rooms that were left and not filled yet."""
    data: bytearray = field(init=False)

    def __post_init__(self) -> None:
        # At its full length at once: one that grows is copied again and again.
        self.data = bytearray(self.size)

    @property
    def is_ready(self) -> bool:
        return self.filled == self.size and not self.missing


class _View:
    """A buffer as something to read."""

    def __init__(self, data: bytearray) -> None:
        self._rest = memoryview(data)

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b'' at the end."""
        given, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return given


class PartsWriter:
    """One object of known size, written front to back; see `verbs.Writer`."""

    def __init__(self, wire: Wire, key: str, *, size: int) -> None:
        self._wire = wire
        self._key = key
        self._size = size
        self._step = part_bytes(size)
        self._position = 0
        self._hasher: hashlib._Hash | None = hashlib.sha256()
        self._open: dict[int, _Buffer] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="kubebooth-store")
        self._sent: deque[Future[tuple[Part, str]]] = deque()
        self._parts: dict[int, tuple[Part, str]] = {}
        self._upload: Upload | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; waits while enough parts are on their way."""
        if self._position + len(data) > self._size:
            raise Refused(f"{self._key}: more than the {self._size} bytes announced were written")
        if self._hasher is not None:
            self._hasher.update(data)
        rest = memoryview(data)
        while rest:
            buffer = self._current()
            taken = rest[: buffer.size - buffer.filled]
            buffer.data[buffer.filled : buffer.filled + len(taken)] = taken
            buffer.filled += len(taken)
            rest = rest[len(taken) :]
            self._position += len(taken)
            self._send_if_ready(buffer)

    def leave(self, length: int) -> int:
        """Leave room to be filled later; gives where it begins."""
        start = self._position
        # The digest of the whole can only be taken in order.
        self._hasher = None
        for buffer, _, count in self._spans_ahead(length):
            buffer.filled += count
            buffer.missing += count
            self._position += count
        return start

    def fill(self, start: int, data: bytes) -> None:
        """Fill room that was left."""
        rest = memoryview(data)
        while rest:
            buffer = self._open.get(start // self._step)
            offset = start % self._step
            taken = rest[: self._step - offset]
            if buffer is None or buffer.missing < len(taken):
                raise Refused(f"{self._key}: no room was left at byte {start}")
            buffer.data[offset : offset + len(taken)] = taken
            buffer.missing -= len(taken)
            start, rest = start + len(taken), rest[len(taken) :]
            self._send_if_ready(buffer)

    def complete(self) -> tuple[str, str | None]:
        """Make the object visible; gives its version tag and SHA-256 in hex where it is known."""
        if self._position != self._size or any(b.missing for b in self._open.values()):
            raise Refused(f"{self._key}: {self._position} of {self._size} bytes were written")
        sha256 = self._hasher.hexdigest() if self._hasher is not None else None
        if self._upload is None:
            return self._complete_small(sha256)
        while self._sent:
            self._collect()
        parts = [self._parts[number][0] for number in sorted(self._parts)]
        tags = {number: tag for number, (_, tag) in self._parts.items()}
        try:
            multipart.complete(self._wire, self._upload, parts, tags)
        except NotFound as error:
            # Completed by a try whose answer was lost, or aborted by someone.
            if self._shown() is None:
                raise Conflict(
                    f"s3://{self._wire.bucket}/{self._key}: someone else ended this upload; let"
                    " only one writer write there"
                ) from error
        self._upload = None
        tag = self._shown()
        if tag is None:
            raise Conflict(f"s3://{self._wire.bucket}/{self._key} was replaced meanwhile")
        return tag, sha256

    def abort(self) -> None:
        """Forget everything that was sent; after `complete` it does nothing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        upload, self._upload = self._upload, None
        self._open.clear()
        if upload is not None:
            try:
                multipart.abort(self._wire, upload)
            except StoreError:
                # Invisible all the same; the next writer of this key removes it.
                return

    def _complete_small(self, sha256: str | None) -> tuple[str, str | None]:
        data = bytes(self._open[0].data) if self._open else b""
        body = Body.of(data)
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-meta-sha256": body.sha256,
        }
        reply = self._wire.send(Call("PUT", self._key, headers=headers, body=body))
        self._open.clear()
        return reply.etag, body.sha256

    def _shown(self) -> str | None:
        """The tag of the object when it is ours."""
        try:
            reply = self._wire.send(Call("HEAD", self._key))
        except NotFound:
            return None
        return reply.etag if reply.size == self._size else None

    def _current(self) -> _Buffer:
        index = self._position // self._step
        if index not in self._open:
            size = min(self._step, self._size - index * self._step)
            self._open[index] = _Buffer(index + 1, size)
        return self._open[index]

    def _spans_ahead(self, length: int) -> list[tuple[_Buffer, int, int]]:
        if self._position + length > self._size:
            raise Refused(f"{self._key}: more than the {self._size} bytes announced were written")
        spans = []
        at, end = self._position, self._position + length
        while at < end:
            index = at // self._step
            size = min(self._step, self._size - index * self._step)
            buffer = self._open.setdefault(index, _Buffer(index + 1, size))
            count = min(end, (index + 1) * self._step) - at
            spans.append((buffer, at, count))
            at += count
        return spans

    def _send_if_ready(self, buffer: _Buffer) -> None:
        if not buffer.is_ready or self._size <= self._step:
            return
        upload = self._upload or self._begin()
        while len(self._sent) >= _AT_ONCE:
            self._collect()
        del self._open[buffer.number - 1]
        self._sent.append(self._pool.submit(self._send, upload, buffer))

    def _begin(self) -> Upload:
        for stale in list(listing.uploads(self._wire, self._key)):
            if stale.key == self._key:
                multipart.abort(self._wire, stale)
        headers = {"content-type": "application/octet-stream"}
        self._upload = multipart.begin(self._wire, self._key, headers)
        return self._upload

    def _send(self, upload: Upload, buffer: _Buffer) -> tuple[Part, str]:
        digest = hashlib.sha256(buffer.data).hexdigest()
        part = Part(buffer.number, (buffer.number - 1) * self._step, buffer.size, digest)
        query = {"partNumber": str(part.number), "uploadId": upload.id}
        body = Body(part.size, part.sha256, lambda: _View(buffer.data))
        reply = self._wire.send(Call("PUT", self._key, query=query, body=body))
        if not reply.etag:
            raise Corrupt(f"{self._key}: the server gave no tag for a part; is this an S3 server?")
        return part, reply.etag

    def _collect(self) -> None:
        part, tag = self._sent.popleft().result()
        self._parts[part.number] = (part, tag)
