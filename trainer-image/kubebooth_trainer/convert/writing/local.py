"""Writes a laid-out file to a descriptor: large copies, CRCs beside them and filled in later.

It must not know names or folders; see `places`.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from kubebooth_trainer.convert.door import Copy, Segment
from kubebooth_trainer.convert.formats.places import shortened
from kubebooth_trainer.convert.writing.computing import computed
from kubebooth_trainer.convert.writing.layouts import Closing, Data, Layout, Literal, Room, Step
from kubebooth_trainer.convert.writing.streams import Stream, is_remote
from kubebooth_trainer.errors import InternalFault, StorageFault

OnBytes = Callable[[int], None]
_READ_BYTES = 128 << 10
_BUFFER_BYTES = 1 << 20
"""Bytes that are copied at once: still in the processor's cache when they are written and summed.
Copies inside the kernel are slower here, since no tensor begins where a page of the target does."""
_BUFFERS = 4
"""How far the sums may lie behind the copies."""
_ZEROS = bytes(_BUFFER_BYTES)


class Writing:
    """One file being written front to back."""

    def __init__(self, descriptor: int, *, tell: OnBytes) -> None:
        self._descriptor = descriptor
        self._tell = tell
        self._sums: list[_Sum] = []
        self._rooms: list[int] = []
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sums")
        self._buffers = [memoryview(bytearray(_BUFFER_BYTES)) for _ in range(_BUFFERS)]
        self._in_use: list[Future[None] | None] = [None] * _BUFFERS
        self._turn = 0
        self._position = 0
        self._stream: Stream | None = None
        self._sparse: dict[int, bool] = {}
        self._open: list[Segment] = []
        """Copies that are still to be made; neighbours are made as one."""

    def write(self, layout: Layout) -> None:
        """Write all of a layout. Raises `DataError`, `StorageFault` when the disk is full."""
        self._stream = Stream.of(layout) if is_remote(layout) else None
        try:
            for step in layout.steps:
                run = self._run_of(step)
                if run is not None:
                    self._join(run)
                    continue
                self._flush()
                if isinstance(step, Literal):
                    self._put(step.data)
                elif isinstance(step, Room):
                    self._rooms.append(self._position)
                    self._put(bytes(step.size))
                elif isinstance(step, Data):
                    self._data(step)
                else:
                    self._close(step)
            self._flush()
            if self._position != layout.size:
                raise InternalFault(f"{self._position} of {layout.size} bytes were written")
            if os.fstat(self._descriptor).st_size != layout.size:
                # A file that ends in a hole has not got its length yet.
                os.ftruncate(self._descriptor, layout.size)
        except OSError as error:
            raise full_or(error) from error
        finally:
            self._beside.shutdown(wait=True, cancel_futures=True)
            if self._stream is not None:
                self._stream.close()

    def _run_of(self, step: Step) -> tuple[Segment, ...] | None:
        """Segments of a step that is a plain copy on disk and nothing else."""
        if self._stream is not None or not isinstance(step, Data) or step.summed:
            return None
        return step.tensor.data.segments if isinstance(step.tensor.data, Copy) else None

    def _join(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            last = self._open[-1] if self._open else None
            if (
                last is not None
                and last.source is segment.source
                and last.start + last.length == segment.start
            ):
                length = last.length + segment.length
                self._open[-1] = Segment(last.source, last.start, length)
                continue
            self._flush()
            self._open.append(segment)

    def _flush(self) -> None:
        for segment in self._open:
            self._copy(segment)
        self._open.clear()

    def _close(self, step: Closing) -> None:
        sums = [one.result() for one in self._sums]
        for room, value in zip(self._rooms, sums, strict=True):
            os.pwrite(self._descriptor, value.to_bytes(4, "little"), room)
        self._put(step.made(sums))

    def _data(self, step: Data) -> None:
        copied = step.tensor.data
        pieces: Iterable[bytes | memoryview]
        if not isinstance(copied, Copy):
            pieces = computed(step.tensor)
        elif self._stream is not None:
            pieces = self._stream.take(step.size)
        else:
            summed = self._sum() if step.summed else None
            for segment in copied.segments:
                self._copy(segment, summed)
            return
        total, summed = 0, self._sum() if step.summed else None
        for piece in pieces:
            total += len(piece)
            if summed is not None:
                # At once: whoever computes may use the piece's memory again.
                summed.add(piece).result()
            self._put(piece)
        if total != step.size:
            raise InternalFault(f"{step.tensor.name}: {total} of {step.size} bytes were computed")

    def _sum(self) -> _Sum:
        self._sums.append(_Sum(self._beside))
        return self._sums[-1]

    def _put(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._position += len(data)
        self._tell(len(data))

    def _copy(self, segment: Segment, summed: _Sum | None = None) -> None:
        source, done = segment.source.descriptor, 0
        if source is None:
            raise InternalFault("a stored file was given where a local one is copied")
        while done < segment.length:
            start, left = segment.start + done, segment.length - done
            hole_bytes = self._hole(source, start, left)
            if hole_bytes:
                os.lseek(self._descriptor, hole_bytes, os.SEEK_CUR)
                self._position += hole_bytes
                self._tell(hole_bytes)
                if summed is not None:
                    summed.add_zeros(hole_bytes)
            done += hole_bytes or self._once(segment, start, left, summed)

    def _once(self, segment: Segment, start: int, left: int, summed: _Sum | None) -> int:
        """Copy a buffer's worth; how many bytes."""
        source = segment.source.descriptor
        if summed is not None:
            self._turn = (self._turn + 1) % _BUFFERS
        busy = self._in_use[self._turn]
        if busy is not None:
            busy.result()
        wanted = self._buffers[self._turn][: min(_BUFFER_BYTES, left)]
        count = os.preadv(source, [wanted], start) if source is not None else 0
        if count == 0:
            raise shortened(segment.source.name, start)
        self._in_use[self._turn] = summed.add(wanted[:count]) if summed is not None else None
        self._put(wanted[:count])
        return count

    def _hole(self, source: int, start: int, length: int) -> int:
        """Bytes of a hole of a sparse source at a position, which become a hole of the target."""
        if source not in self._sparse:
            status = os.fstat(source)
            self._sparse[source] = status.st_blocks * 512 < status.st_size
        if not self._sparse[source]:
            return 0
        data = _next_data(source, start)
        return min(length, data - start) if data is not None else 0


class _Sum:
    """CRC-32 of bytes that come piece by piece, made beside the writing, in order."""

    def __init__(self, beside: ThreadPoolExecutor) -> None:
        self._beside = beside
        self._crc32 = 0
        self._last: Future[None] | None = None

    def add(self, piece: bytes | memoryview) -> Future[None]:
        """Add bytes, which must stay as they are until what is given back is done."""
        self._last = self._beside.submit(self._add, piece)
        return self._last

    def add_zeros(self, count: int) -> None:
        """Add as many zeros."""
        for done in range(0, count, _BUFFER_BYTES):
            self.add(memoryview(_ZEROS)[: min(_BUFFER_BYTES, count - done)])

    def result(self) -> int:
        """The sum; waits for it."""
        if self._last is not None:
            self._last.result()
        return self._crc32

    def _add(self, piece: bytes | memoryview) -> None:
        self._crc32 = zlib.crc32(piece, self._crc32)


def _next_data(source: int, start: int) -> int | None:
    """Where data begins at or after a position of a sparse file; None where it cannot be told."""
    try:
        return os.lseek(source, start, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(source).st_size if error.errno == errno.ENXIO else None


def pieces_of(segments: Iterable[Segment], piece_bytes: int = _READ_BYTES) -> Iterator[bytes]:
    """The bytes of segments, one after the other, in pieces."""
    for segment in segments:
        for done in range(0, segment.length, piece_bytes):
            length = min(piece_bytes, segment.length - done)
            yield segment.source.read(segment.start + done, length)


def crc_of(segments: Iterable[Segment]) -> int:
    """CRC-32 of the bytes of segments."""
    crc32 = 0
    for piece in pieces_of(segments):
        crc32 = zlib.crc32(piece, crc32)
    return crc32


def full_or(error: OSError) -> StorageFault | OSError:
    """The error of ours for a disk that is full; any other as it is."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StorageFault(
            "there is no space left for the target; free space or name another place: nothing of"
            " it is shown, and what was there before is untouched",
            reason="NoSpace",
        )
    return error
