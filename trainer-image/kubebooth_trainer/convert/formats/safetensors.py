"""The header of a safetensors file: offsets of its tensors, after safetensors' own reader agreed.

It must not read tensor data.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_trainer.convert.door import DTYPE_BYTES, Bytes, Segment, Tensor
from kubebooth_trainer.convert.formats.places import shortened
from kubebooth_trainer.errors import DataError

MAX_HEADER_BYTES = 16 << 20
"""Longest header that is read; the longest in the wild are training notes of a few MiB."""
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_start: int
    """First byte after the header."""


def read_header(file: Bytes) -> Header:
    """Read and check a header. Raises `DataError` that says what is wrong with the file."""
    if file.size < _LENGTH_BYTES:
        raise shortened(file.name, file.size)
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise malformed(file, f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    if _LENGTH_BYTES + length > file.size:
        raise shortened(file.name, file.size)
    text = file.read(_LENGTH_BYTES, length)
    _pass_gate(file, text)
    return _parsed(file, text, _LENGTH_BYTES + length)


def malformed(file: Bytes, why: str) -> DataError:
    """A file that is no safetensors file, or a broken one."""
    return DataError(
        f"{file.name} is no valid safetensors file: {why}; download or save it again",
        reason="MalformedHeader",
    )


def _pass_gate(file: Bytes, text: bytes) -> None:
    """Have safetensors' own reader check the header.

    A file that is not on disk is shown to it as an empty one of the same length with the same
    header: it checks lengths and offsets, and reads no data.
    """
    from safetensors import SafetensorError, safe_open

    with _descriptor_of(file, text) as descriptor:
        try:
            with safe_open(f"/proc/self/fd/{descriptor}", framework="np"):
                return
        except SafetensorError as error:
            raise malformed(file, str(error)[:200]) from error
        except OSError as error:
            raise malformed(file, f"it cannot be mapped ({error.strerror or error})") from error


@contextlib.contextmanager
def _descriptor_of(file: Bytes, text: bytes) -> Iterator[int]:
    if file.descriptor is not None:
        yield file.descriptor
        return
    descriptor = os.memfd_create("header", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, file.size)
        rest = memoryview(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        position = 0
        while rest:
            written = os.pwrite(descriptor, rest, position)
            rest, position = rest[written:], position + written
        yield descriptor
    finally:
        os.close(descriptor)


def _parsed(file: Bytes, text: bytes, data_start: int) -> Header:
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise malformed(file, f"its header is no JSON ({str(error)[:100]})") from error
    if not isinstance(rows, dict):
        raise malformed(file, "its header is no JSON object")
    metadata = rows.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise malformed(file, "__metadata__ is not made of strings")
    spans = {name: _span(file, name, row, data_start) for name, row in rows.items()}
    end = data_start
    for name, tensor in sorted(spans.items(), key=lambda item: item[1].segments[0].start):
        (segment,) = tensor.segments
        if segment.start != end:
            raise malformed(file, f"{_told(name)} does not begin where the one before it ends")
        end = segment.start + segment.length
    if end != file.size:
        raise malformed(file, f"its tensors end at byte {end} and the file at {file.size}")
    return Header(spans, metadata, data_start)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name given twice is refused."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _span(file: Bytes, name: str, row: object, data_start: int) -> Tensor:
    if not isinstance(row, dict):
        raise malformed(file, f"{_told(name)} is described by no object")
    dtype: Any = row.get("dtype")
    shape: Any = row.get("shape")
    offsets: Any = row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise DataError(
            f"{file.name}: {_told(name)} has the dtype {str(dtype)[:20]!r}; convertible are"
            f" {', '.join(DTYPE_BYTES)}",
            reason="UnsupportedDtype",
        )
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise malformed(file, f"{_told(name)} has no valid shape or offsets")
    values = 1
    for edge in shape:
        values *= edge
    start, end = offsets
    if end - start != values * DTYPE_BYTES[dtype]:
        raise malformed(file, f"{_told(name)} has another length than its shape and dtype give")
    return Tensor(dtype, tuple(shape), (Segment(file, data_start + start, end - start),))


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(edge) is int and edge >= 0 for edge in value)


def _told(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:79]}…")
