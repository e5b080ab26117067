"""The copied bytes of a layout as one stream, read ahead: what comes over a network comes in time.

It must not know stores: it asks `Bytes` for spans, several at once and in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from kubebooth_trainer.convert.door import Copy, Segment
from kubebooth_trainer.convert.writing.layouts import Data, Layout
from kubebooth_trainer.errors import InternalFault

SPAN_BYTES = 2 << 20
_AT_ONCE = 4


class Stream:
    """Bytes of segments, in order; of a layout those of all its copied tensors."""

    def __init__(self, segments: Iterable[Segment]) -> None:
        self._spans = _spans(segments)
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="ahead")
        self._coming: deque[Future[bytes]] = deque()
        self._rest = memoryview(b"")

    @staticmethod
    def of(layout: Layout) -> Stream:
        """What a layout copies, in the order in which it is written."""
        return Stream(_copied(layout))

    def take(self, size: int) -> Iterator[memoryview]:
        """The next bytes, in pieces. Raises what reading raises."""
        while size:
            if not self._rest:
                self._rest = memoryview(self._next())
            piece = self._rest[:size]
            self._rest = self._rest[len(piece) :]
            size -= len(piece)
            yield piece

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> bytes:
        while len(self._coming) < _AT_ONCE:
            span = next(self._spans, None)
            if span is None:
                break
            self._coming.append(self._pool.submit(span.source.read, span.start, span.length))
        if not self._coming:
            raise InternalFault("more bytes are written than the plan copies")
        return self._coming.popleft().result()


def read_ahead(segments: Sequence[Segment]) -> Iterator[memoryview]:
    """The bytes of segments, one after the other, in pieces. Raises what reading raises."""
    stream = Stream(segments)
    try:
        yield from stream.take(sum(segment.length for segment in segments))
    finally:
        stream.close()


def _copied(layout: Layout) -> Iterator[Segment]:
    for step in layout.steps:
        if isinstance(step, Data) and isinstance(step.tensor.data, Copy):
            yield from step.tensor.data.segments


def _spans(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Spans to read: neighbours are read as one, large segments in pieces."""
    open_span: Segment | None = None
    for segment in segments:
        for start in range(0, segment.length, SPAN_BYTES):
            length = min(SPAN_BYTES, segment.length - start)
            piece = Segment(segment.source, segment.start + start, length)
            if open_span is None:
                open_span = piece
            elif _joins(open_span, piece):
                open_span = Segment(piece.source, open_span.start, open_span.length + length)
            else:
                yield open_span
                open_span = piece
    if open_span is not None:
        yield open_span


def _joins(before: Segment, piece: Segment) -> bool:
    return (
        before.source is piece.source
        and before.start + before.length == piece.start
        and before.length + piece.length <= SPAN_BYTES
    )


def is_remote(layout: Layout) -> bool:
    """Whether any copied byte comes from where there is no descriptor."""
    return any(segment.source.descriptor is None for segment in _copied(layout))
