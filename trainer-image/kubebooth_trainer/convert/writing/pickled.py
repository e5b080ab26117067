"""The pickle of a CKPT, written by hand: a nested `state_dict` of tensors over numbered storages.

Protocol 2, with no globals but those that every loader of checkpoints allows. It must not know how
the archive is laid out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from kubebooth_trainer.convert.door import Planned
from kubebooth_trainer.errors import ConfigurationError

_STORAGES: Mapping[str, str] = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
    "U8": "ByteStorage", "BOOL": "BoolStorage",
}  # fmt: skip
_BATCH = 1000


def pickled(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """`{"state_dict": {name: tensor, …}, …metadata}`; storage N is tensor N."""
    parts = [b"\x80\x02}q\x00("]
    for name, value in metadata.items():
        parts += [_text(name), _text(value)]
    parts += [_text("state_dict"), b"ccollections\nOrderedDict\n)R"]
    for start in range(0, len(tensors), _BATCH):
        parts.append(b"(")
        for number in range(start, min(start + _BATCH, len(tensors))):
            parts += [_text(tensors[number].name), _tensor(tensors[number], number)]
        parts.append(b"u")
    parts.append(b"u.")
    return b"".join(parts)


def _tensor(tensor: Planned, number: int) -> bytes:
    kind = _STORAGES.get(tensor.dtype)
    if kind is None:
        raise ConfigurationError(
            f"a CKPT cannot hold {tensor.name} as {tensor.dtype}; set a precision or write"
            " safetensors"
        )
    values = 1
    strides: list[int] = []
    for edge in reversed(tensor.shape):
        strides.insert(0, values)
        values *= edge
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{kind}\n".encode(),
            _text(str(number)),
            _text("cpu"),
            _number(values),
            b"tQK\x00",
            _tuple(tensor.shape),
            _tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"".join([b"(", *map(_number, numbers), b"t"])


def _number(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + struct.pack("<B", len(raw)) + raw


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw
