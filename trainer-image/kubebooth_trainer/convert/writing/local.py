"""Writes a laid-out file to a descriptor: copies inside the kernel, sums beside, CRCs filled in.

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
_COPY_BYTES = 32 << 20
"""Bytes of one call into the kernel, so that progress is told and a stop is heard."""
_READ_BYTES = 128 << 10
_NOT_HERE = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF,
    errno.ETXTBSY,
}  # fmt: skip
Sum = int | Future[int]


class Writing:
    """One file being written front to back."""

    def __init__(self, descriptor: int, *, tell: OnBytes) -> None:
        self._descriptor = descriptor
        self._tell = tell
        self._ways = [_copied_by_kernel, _sent_by_kernel]
        self._sums: list[Sum] = []
        self._rooms: list[int] = []
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sums")
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
        sums = [s if isinstance(s, int) else s.result() for s in self._sums]
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
            if step.summed:
                self._sums.append(self._beside.submit(crc_of, copied.segments))
            for segment in copied.segments:
                self._copy(segment)
            return
        total = crc32 = 0
        for piece in pieces:
            total += len(piece)
            if step.summed:
                crc32 = zlib.crc32(piece, crc32)
            self._put(piece)
        if total != step.size:
            raise InternalFault(f"{step.tensor.name}: {total} of {step.size} bytes were computed")
        if step.summed:
            self._sums.append(crc32)

    def _put(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._position += len(data)
        self._tell(len(data))

    def _copy(self, segment: Segment) -> None:
        done = 0
        while done < segment.length:
            count = self._once(segment, done)
            done += count
            self._position += count
            self._tell(count)

    def _hole(self, source: int, start: int, length: int) -> int:
        """Bytes of a hole of a sparse source at a position, which become a hole of the target."""
        if source not in self._sparse:
            status = os.fstat(source)
            self._sparse[source] = status.st_blocks * 512 < status.st_size
        if not self._sparse[source]:
            return 0
        data = _next_data(source, start)
        return min(length, data - start) if data is not None else 0

    def _once(self, segment: Segment, done: int) -> int:
        source = segment.source.descriptor
        if source is None:
            raise InternalFault("a stored file was given where a local one is copied")
        start, length = segment.start + done, min(_COPY_BYTES, segment.length - done)
        hole_bytes = self._hole(source, start, segment.length - done)
        if hole_bytes:
            os.lseek(self._descriptor, hole_bytes, os.SEEK_CUR)
            return hole_bytes
        while self._ways:
            try:
                count = self._ways[0](source, self._descriptor, start, length)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._ways.pop(0)
                continue
            if count == 0:
                raise shortened(segment.source.name, start)
            return count
        data = segment.source.read(start, min(length, _READ_BYTES))
        return os.write(self._descriptor, data)


def _next_data(source: int, start: int) -> int | None:
    """Where data begins at or after a position of a sparse file; None where it cannot be told."""
    try:
        return os.lseek(source, start, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(source).st_size if error.errno == errno.ENXIO else None


def _copied_by_kernel(source: int, target: int, start: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset_src=start)


def _sent_by_kernel(source: int, target: int, start: int, length: int) -> int:
    return os.sendfile(target, source, start, length)


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
