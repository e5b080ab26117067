"""Safetensors files that are broken or mean harm, each by a name; and odd ones that are fine."""

from __future__ import annotations

import json
import struct
from typing import Any

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header: Any, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    """A file from a header (JSON-shaped, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _row(**changes: Any) -> dict[str, Any]:
    return {"a": {**F32, **changes}}


def hostile() -> dict[str, bytes]:
    """Files that must be refused."""
    good = json.dumps({"a": F32}).encode()
    second = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    return {
        "empty": b"",
        "seven bytes": bytes(7),
        "length only": bytes(8),
        "length beyond the file": file_of(good, length=1 << 20),
        "length of 2^63": file_of(good, length=1 << 63),
        "length of all ones": file_of(good, length=(1 << 64) - 1),
        "length one too small": file_of(good, length=len(good) - 1),
        "length over the bound": file_of(good, length=200 << 20),
        "no JSON": file_of(b"not json at all!"),
        "a list": file_of([1, 2, 3]),
        "a number": file_of(b"42"),
        "null": file_of(b"null"),
        "a string": file_of(b'"text"'),
        "no UTF-8": file_of(b'{"\xff\xfe": 1}'),
        "an open brace": file_of(b"{"),
        "a comma too many": file_of(b'{"a": 1,}'),
        "deep JSON": file_of(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        "deep lists": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "NaN": file_of(b'{"a": NaN}'),
        "text after the JSON": file_of(good + b" {}"),
        "a name twice": file_of(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
        "a tensor that is a number": file_of({"a": 5}),
        "a tensor that is null": file_of({"a": None}),
        "a tensor that is a list": file_of({"a": [F32]}),
        "an unknown dtype": file_of(_row(dtype="F31")),
        "a dtype in small letters": file_of(_row(dtype="f32")),
        "a dtype that is a number": file_of(_row(dtype=32)),
        "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}),
        "no shape": file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
        "no offsets": file_of({"a": {"dtype": "F32", "shape": [2]}}),
        "a shape that is text": file_of(_row(shape="2")),
        "a negative edge": file_of(_row(shape=[-2])),
        "two negative edges": file_of(_row(shape=[-1, -2])),
        "a broken edge": file_of(_row(shape=[2.5])),
        "an edge of 2^64": file_of(_row(shape=[1 << 64])),
        "a product that overflows": file_of(_row(shape=[1 << 33, 1 << 33])),
        "a product that wraps to the length": file_of(_row(shape=[(1 << 62) + 2, 4])),
        "a shape larger than the data": file_of(_row(shape=[3])),
        "a shape smaller than the data": file_of(_row(shape=[1])),
        "one offset": file_of(_row(data_offsets=[0])),
        "three offsets": file_of(_row(data_offsets=[0, 8, 8])),
        "offsets that are text": file_of(_row(data_offsets=["0", "8"])),
        "offsets backwards": file_of(_row(data_offsets=[8, 0])),
        "negative offsets": file_of(_row(data_offsets=[-8, 0])),
        "offsets beyond the file": file_of(_row(data_offsets=[8, 16])),
        "offsets of 2^64": file_of(_row(data_offsets=[1 << 64, (1 << 64) + 8])),
        "a hole at the start": file_of(_row(data_offsets=[4, 12]), bytes(12)),
        "a hole between": file_of({"a": F32, "b": {**second, "data_offsets": [12, 20]}}, bytes(20)),
        "an overlap": file_of({"a": F32, "b": {**second, "data_offsets": [4, 12]}}, bytes(12)),
        "the same bytes twice": file_of({"a": F32, "b": F32}),
        "bytes after the end": file_of({"a": F32}, bytes(9)),
        "one byte missing": file_of({"a": F32}, bytes(7)),
        "all data missing": file_of({"a": F32}, b""),
        "metadata that is a list": file_of({"__metadata__": [], "a": F32}),
        "metadata with a number": file_of({"__metadata__": {"k": 1}, "a": F32}),
        "metadata with an object": file_of({"__metadata__": {"k": {}}, "a": F32}),
        "a bool for an edge": file_of(_row(shape=[True, 2])),
        "a zip": b"PK\x03\x04" + bytes(60),
        "a pickle": b"\x80\x02}q\x00." + bytes(20),
        "an HTML page": b"<!DOCTYPE html><html><body>please sign in</body></html>",
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }


def odd() -> dict[str, bytes]:
    """Files that are strange and valid."""
    zero = {"dtype": "F16", "shape": [0, 7], "data_offsets": [8, 8]}
    return {
        "no tensors": file_of({}, b""),
        "metadata only": file_of({"__metadata__": {"a": "b"}}, b""),
        "a path as name": file_of({"../../etc/passwd": F32}),
        "NUL in a name": file_of({"a\0b": F32}),
        "an empty name": file_of({"": F32}),
        "an emoji": file_of({"😀" * 20: F32}),
        "spaces after the header": file_of(json.dumps({"a": F32}).encode() + b" " * 50),
        "a scalar": file_of({"a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}),
        "an empty tensor": file_of({"a": F32, "z": zero}),
        "a tensor named like a field": file_of({"dtype": F32}),
    }
