"""How the bytes of a planned file follow one another, known to the byte before one is written.

It must not read or write anything.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubebooth_trainer.convert.door import DTYPE_BYTES, Copy, Planned, PlannedFile
from kubebooth_trainer.convert.formats.safetensors import MAX_HEADER_BYTES
from kubebooth_trainer.convert.writing.pickled import pickled
from kubebooth_trainer.errors import ConfigurationError, InternalFault

ALIGNMENT_BYTES = 64
"""Tensors of a CKPT begin at multiples of it, so that the file can be mapped."""
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_DOS_DATE = (1 << 5) | 1
"""1 January 1980: the same input must give the same bytes."""
_LOCAL = struct.Struct("<4s5H3L2H")
_ROW = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_PADDING = 0x4B42
"""Kind of the extra field that only fills up to the alignment."""


@dataclass(frozen=True)
class Literal:
    """Bytes that are known."""

    data: bytes

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)


@dataclass(frozen=True)
class Room:
    """Four bytes for the CRC of the data that follows."""

    size: int = 4


@dataclass(frozen=True)
class Data:
    """The bytes of one tensor."""

    tensor: Planned
    size: int
    summed: bool = False
    """Whether its CRC is wanted."""


@dataclass(frozen=True)
class Closing:
    """The end of a file, made from the CRCs of all its summed data."""

    size: int
    made: Callable[[Sequence[int]], bytes]


Step = Literal | Room | Data | Closing


@dataclass(frozen=True)
class Layout:
    """A file to the byte."""

    size: int
    steps: tuple[Step, ...]


def layout_of(file: PlannedFile) -> Layout:
    """Lay a planned file out. Raises `InternalFault` when its lengths contradict each other."""
    if file.form == "Text":
        return Layout(len(file.text), (Literal(file.text),))
    steps = _safetensors(file) if file.form == "Safetensors" else _ckpt(file)
    return Layout(sum(step.size for step in steps), tuple(steps))


def planned_bytes(tensor: Planned) -> int:
    """Length of a tensor to write, in bytes."""
    values = 1
    for edge in tensor.shape:
        values *= edge
    length = values * DTYPE_BYTES[tensor.dtype]
    if isinstance(tensor.data, Copy):
        given = sum(segment.length for segment in tensor.data.segments)
        if given != length:
            raise InternalFault(
                f"{tensor.name} was planned with {given} bytes where its shape takes {length}"
            )
    return length


def _safetensors(file: PlannedFile) -> list[Step]:
    header: dict[str, object] = {}
    if file.metadata:
        header["__metadata__"] = dict(file.metadata)
    steps: list[Step] = []
    position = 0
    for tensor in file.tensors:
        size = planned_bytes(tensor)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
        steps.append(Data(tensor, size))
    if len(header) != len(file.tensors) + bool(file.metadata):
        raise InternalFault(f"{file.path} was planned with a tensor twice")
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ConfigurationError(
            f"the metadata of {file.path} is too large for a header; give less of it"
        )
    return [Literal(len(text).to_bytes(8, "little") + text), *steps]


@dataclass(frozen=True)
class _Record:
    """One entry of the archive."""

    name: bytes
    size: int
    start: int
    """Position of its local header."""
    crc32: int | None
    """None until the data was written."""


def _ckpt(file: PlannedFile) -> list[Step]:
    sizes = [planned_bytes(tensor) for tensor in file.tensors]
    steps: list[Step] = []
    records: list[_Record] = []
    position = 0

    def add(name: str, content: bytes | None, tensor: Planned | None, size: int) -> None:
        nonlocal position
        record = _Record(
            f"archive/{name}".encode(),
            size,
            position,
            _crc(content) if content is not None else None,
        )
        before, after = _local_header(record)
        added: list[Step] = [Literal(before), Room(), Literal(after)]
        if tensor is None:
            whole = before + (record.crc32 or 0).to_bytes(4, "little") + after + (content or b"")
            added = [Literal(whole)]
        else:
            added.append(Data(tensor, size, summed=True))
        steps.extend(added)
        records.append(record)
        position += sum(step.size for step in added)

    described = pickled(file.tensors, file.metadata)
    add("data.pkl", described, None, len(described))
    for number, (tensor, size) in enumerate(zip(file.tensors, sizes, strict=True)):
        add(f"data/{number}", None, tensor, size)
    add("version", b"3\n", None, 2)
    end = position
    blank = _directory(records, [0] * len(sizes), end)
    return [*steps, Closing(len(blank), lambda sums: _directory(records, sums, end))]


def _crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def _local_header(record: _Record) -> tuple[bytes, bytes]:
    """The header of an entry before and after its CRC, padded so that its data is aligned."""
    large = record.size >= _MAX32
    sizes = struct.pack("<2H2Q", 1, 16, record.size, record.size) if large else b""
    fixed = _LOCAL.size + len(record.name) + len(sizes)
    padding = -(record.start + fixed + 4) % ALIGNMENT_BYTES
    extra = sizes + struct.pack("<2H", _PADDING, padding) + bytes(padding)
    shown = _MAX32 if large else record.size
    head = _LOCAL.pack(
        b"PK\x03\x04", 45 if large else 20, 0x800, 0, 0, _DOS_DATE, 0, shown, shown,
        len(record.name), len(extra),
    )  # fmt: skip
    return head[:14], head[18:] + record.name + extra


def _directory(records: Sequence[_Record], sums: Sequence[int], start: int) -> bytes:
    pending = iter(sums)
    rows = []
    for record in records:
        crc32 = record.crc32 if record.crc32 is not None else next(pending)
        rows.append(_row(record, crc32))
    table = b"".join(rows)
    count, end = len(records), start + len(table)
    tail = b""
    if count >= _MAX16 or start >= _MAX32 or len(table) >= _MAX32:
        tail = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(table), start)
        tail += _LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
    short = min(count, _MAX16)
    tail += _END.pack(
        b"PK\x05\x06", 0, 0, short, short, min(len(table), _MAX32), min(start, _MAX32), 0
    )
    return table + tail


def _row(record: _Record, crc32: int) -> bytes:
    wide = [value for value in (record.size, record.size, record.start) if value >= _MAX32]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = min(record.size, _MAX32)
    head = _ROW.pack(
        b"PK\x01\x02", 45, 45 if wide else 20, 0x800, 0, 0, _DOS_DATE, crc32, size, size,
        len(record.name), len(extra), 0, 0, 0, 0, min(record.start, _MAX32),
    )  # fmt: skip
    return head + record.name + extra
