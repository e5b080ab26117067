"""Tensors seen as runs of bytes: rows, halves, transposes and joins, without reading one value.

It must not know names, families, torch or numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kubebooth_trainer.convert.door import DTYPE_BYTES, Compute, Copy, Segment, Tensor
from kubebooth_trainer.errors import DataError

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""Dtypes that a change of precision touches."""


@dataclass(frozen=True)
class Held:
    """Bytes in memory that behave like a file; for the few values that no source has."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    @property
    def descriptor(self) -> int | None:
        """Nothing the kernel could copy from."""
        return None

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        return self.data[start : start + length]


@dataclass(frozen=True)
class Zeros:
    """A file of nothing but zeros, of any length, that takes no memory."""

    size: int
    name: str = "zeros"

    @property
    def descriptor(self) -> int | None:
        """Nothing the kernel could copy from."""
        return None

    def read(self, start: int, length: int) -> bytes:
        """`length` zeros."""
        return bytes(length)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in values of a row-major tensor."""
    strides, step = [], 1
    for edge in reversed(shape):
        strides.append(step)
        step *= edge
    return tuple(reversed(strides))


def held(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    """A tensor of given bytes."""
    source = Held(name, data)
    return Tensor(dtype, shape, (Segment(source, 0, len(data)),) if data else ())


def zeros(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros."""
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    return Tensor(dtype, shape, (Segment(Zeros(size), 0, size),) if size else ())


def nbytes(tensor: Tensor) -> int:
    """Bytes of its values, laid out row-major."""
    return math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the first dimension."""
    shape = (stop - start, *tensor.shape[1:])
    if tensor.strides is not None:
        return _from(tensor, start * tensor.strides[0], shape, tensor.strides)
    width = math.prod(tensor.shape[1:]) * DTYPE_BYTES[tensor.dtype]
    return Tensor(tensor.dtype, shape, _cut(tensor.segments, start * width, stop * width))


def columns(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Columns `start` to `stop` of a matrix."""
    strides = tensor.strides or contiguous_strides(tensor.shape)
    shape = (tensor.shape[0], stop - start)
    return _from(tensor, start * strides[1], shape, strides)


def transposed(tensor: Tensor) -> Tensor:
    """A matrix with its dimensions exchanged."""
    strides = tensor.strides or contiguous_strides(tensor.shape)
    return _plain(
        Tensor(tensor.dtype, tensor.shape[::-1], tensor.segments, (strides[1], strides[0]))
    )


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same values under a shape that differs in trailing ones only."""
    if tensor.strides is None:
        return Tensor(tensor.dtype, shape, tensor.segments)
    strides = (tensor.strides + (1,) * len(shape))[: len(shape)]
    return Tensor(tensor.dtype, shape, tensor.segments, strides)


def swapped_halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Second and first half of the rows, in the order in which they are to be joined."""
    half = tensor.shape[0] // 2
    return rows(tensor, half, tensor.shape[0]), rows(tensor, 0, half)


def read(tensor: Tensor) -> bytes:
    """All bytes of a small contiguous tensor. Raises what its file raises."""
    return b"".join(part.source.read(part.start, part.length) for part in tensor.segments)


def joined(inputs: Sequence[Tensor], *, dtype: str) -> Copy | Compute:
    """How the rows of `inputs` become one tensor of `dtype`."""
    if any(part.dtype != dtype for part in inputs):
        return Compute("Cast", tuple(inputs))
    if any(part.strides is not None for part in inputs):
        return Compute("Gather", tuple(inputs))
    return Copy(_merged([segment for part in inputs for segment in part.segments]))


def as_one(inputs: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The rows of `inputs` as one tensor. Raises `DataError` where they cannot stand in one."""
    if len(inputs) == 1:
        return reshaped(inputs[0], shape) if inputs[0].shape != shape else inputs[0]
    if any(part.strides is not None or part.dtype != inputs[0].dtype for part in inputs):
        raise DataError(
            "tensors that are to be joined are not laid out in one piece or differ in dtype; save"
            " the model as safetensors in one precision first",
            reason="UnevenTensors",
        )
    segments = _merged([segment for part in inputs for segment in part.segments])
    return Tensor(inputs[0].dtype, shape, segments)


def _from(tensor: Tensor, skipped: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """A view that begins `skipped` values later and ends with its own last value."""
    width = DTYPE_BYTES[tensor.dtype]
    last = sum((edge - 1) * step for edge, step in zip(shape, strides, strict=True))
    length = (last + 1 if math.prod(shape) else 0) * width
    segments = _cut(tensor.segments, skipped * width, skipped * width + length)
    return _plain(Tensor(tensor.dtype, shape, segments, strides))


def _plain(tensor: Tensor) -> Tensor:
    """The same view without strides where they say nothing."""
    if tensor.strides == contiguous_strides(tensor.shape):
        return Tensor(tensor.dtype, tensor.shape, tensor.segments)
    return tensor


def _cut(segments: Sequence[Segment], start: int, stop: int) -> tuple[Segment, ...]:
    cut, at = [], 0
    for segment in segments:
        first, last = max(start, at), min(stop, at + segment.length)
        if first < last:
            cut.append(Segment(segment.source, segment.start + first - at, last - first))
        at += segment.length
    return tuple(cut)


def _merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbours in one file as one run, so that splitting and joining again costs nothing."""
    merged: list[Segment] = []
    for segment in segments:
        if (
            merged
            and merged[-1].source is segment.source
            and merged[-1].start + merged[-1].length == segment.start
        ):
            before = merged.pop()
            segment = Segment(before.source, before.start, before.length + segment.length)
        merged.append(segment)
    return tuple(merged)
