"""Reads the header of a safetensors file by ranges: names, types, shapes, and that nothing is cut.

It never reads weights, and treats every number in the header as hostile.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_MAX_TENSORS = 200_000
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}

ReadRange = Callable[[int, int], bytes]
"""Start and length in bytes → that part of the file, shorter at its end."""


class BadHeader(Exception):
    """The file is no intact safetensors file; the message says why."""


def check(read_range: ReadRange, *, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name of a file of `size` bytes. Raises `BadHeader`."""
    first = read_range(0, 8)
    if len(first) < 8:
        raise BadHeader("is too short to be a safetensors file")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise BadHeader("is no safetensors file, or its header is damaged")
    data = read_range(8, length)
    if len(data) != length:
        raise BadHeader("is cut off inside its header")
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadHeader("is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise BadHeader("has a header that is no table of tensors")
    spans, shapes = [], {}
    for name, row in header.items():
        if name == "__metadata__":
            continue
        shape, start, end = _tensor(name, row)
        shapes[name] = shape
        spans.append((start, end))
    _check_spans(spans, available=size - 8 - length)
    return shapes


def _tensor(name: str, row: Any) -> tuple[tuple[int, ...], int, int]:
    shown = name[:80]
    if not isinstance(row, dict):
        raise BadHeader(f"describes tensor {shown!r} wrongly")
    bits = _BITS.get(str(row.get("dtype")))
    shape: Any = row.get("shape")
    span: Any = row.get("data_offsets")
    if bits is None:
        raise BadHeader(f"has tensor {shown!r} of unknown type {str(row.get('dtype'))[:20]!r}")
    numbers = [shape, span]
    if not all(isinstance(part, list) and len(part) <= 8 for part in numbers):
        raise BadHeader(f"describes tensor {shown!r} wrongly")
    if not all(type(value) is int and value >= 0 for part in numbers for value in part):
        raise BadHeader(f"describes tensor {shown!r} with wrong numbers")
    if len(span) != 2 or math.prod(shape) * bits // 8 != span[1] - span[0]:
        raise BadHeader(f"has tensor {shown!r} whose shape and size disagree")
    return tuple(shape), span[0], span[1]


def _check_spans(spans: list[tuple[int, int]], *, available: int) -> None:
    if not spans:
        raise BadHeader("holds no tensors")
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise BadHeader("has a gap or overlap between its tensors")
        reached = end
    if reached > available:
        raise BadHeader(f"is cut off: {reached - available} bytes of weights are missing")
    if reached < available:
        raise BadHeader(f"has {available - reached} bytes that belong to no tensor")
