"""The directory of a zip archive, read with bounds, down to where each stored entry's bytes lie.

Checkpoints are zips whose entries are stored, not compressed. It must not know what they hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kubebooth_trainer.convert.door import Bytes, Segment
from kubebooth_trainer.convert.formats.places import shortened
from kubebooth_trainer.errors import DataError

MAX_ENTRIES = 65_536
MAX_DIRECTORY_BYTES = 16 << 20
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ROW = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_COMMENT_BYTES = 65_535
_MAX32 = 0xFFFFFFFF
_ENCRYPTED = 0x1
_AT_ONCE = 8


@dataclass(frozen=True)
class Entry:
    """One row of the directory."""

    name: str
    flags: int
    method: int
    crc32: int
    size: int
    """Length of the content in bytes; equal to the stored length as nothing is compressed."""
    packed_size: int
    header_start: int


@dataclass(frozen=True)
class Directory:
    """All entries of an archive by name."""

    file: Bytes
    entries: Mapping[str, Entry]
    start: int
    """Where the directory begins, which is where the entries end."""

    def segment(self, name: str) -> Segment:
        """Where the bytes of one stored entry lie. Raises `DataError`."""
        (found,) = self.segments((name,))
        return found

    def segments(self, names: Iterable[str]) -> list[Segment]:
        """Where the bytes of stored entries lie. Raises `DataError`."""
        rows = [self._stored(name) for name in names]
        if self.file.descriptor is not None:
            return [self._located(row) for row in rows]
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(self._located, rows))

    def _stored(self, name: str) -> Entry:
        row = self.entries.get(name)
        if row is None:
            raise malformed(self.file, f"it lacks the record {name[:80]!r}")
        if row.flags & _ENCRYPTED or row.method != 0 or row.packed_size != row.size:
            raise malformed(self.file, f"its record {name[:80]!r} is compressed or encrypted")
        return row

    def _located(self, row: Entry) -> Segment:
        head = self.file.read(row.header_start, _LOCAL.size)
        fields = _LOCAL.unpack(head)
        if fields[0] != b"PK\x03\x04":
            raise malformed(self.file, f"the record {row.name[:80]!r} has no header")
        name_bytes, extra_bytes = fields[9], fields[10]
        name = self.file.read(row.header_start + _LOCAL.size, name_bytes)
        if name != row.name.encode():
            raise malformed(self.file, f"the record {row.name[:80]!r} has another name in place")
        start = row.header_start + _LOCAL.size + name_bytes + extra_bytes
        if start + row.size > self.start:
            raise malformed(self.file, f"the record {row.name[:80]!r} reaches into the directory")
        return Segment(self.file, start, row.size)


def malformed(file: Bytes, why: str) -> DataError:
    """A file that is no archive, or a broken one."""
    return DataError(
        f"{file.name} is no valid checkpoint archive: {why}; download or save it again",
        reason="MalformedArchive",
    )


def read_directory(file: Bytes) -> Directory:
    """Read and check the directory. Raises `DataError` that says what is wrong with the file."""
    count, size, start = _ending(file)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise malformed(file, f"its directory claims {count} records in {size} bytes")
    if start + size > file.size:
        raise shortened(file.name, file.size)
    table = file.read(start, size)
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(count):
        row, position = _row(file, table, position)
        if row.name in entries:
            raise malformed(file, f"the record {row.name[:80]!r} stands twice")
        if row.header_start + _LOCAL.size + row.packed_size > start:
            raise malformed(file, f"the record {row.name[:80]!r} reaches into the directory")
        entries[row.name] = row
    if position != size:
        raise malformed(file, "its directory has another length than its records")
    _refuse_overlap(file, entries)
    return Directory(file, entries, start)


def _refuse_overlap(file: Bytes, entries: Mapping[str, Entry]) -> None:
    """Records that share bytes make a small file a large model."""
    end = 0
    for row in sorted(entries.values(), key=lambda row: row.header_start):
        if row.header_start < end:
            raise malformed(file, f"the record {row.name[:80]!r} overlaps another")
        end = row.header_start + _LOCAL.size + row.packed_size


def _ending(file: Bytes) -> tuple[int, int, int]:
    """Number of records, size and start of the directory."""
    tail_bytes = min(file.size, _END.size + _COMMENT_BYTES)
    tail = file.read(file.size - tail_bytes, tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise malformed(file, "it has no directory, so it was cut off or is no zip archive")
    _, disk, first, here, count, size, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise malformed(file, "bytes follow its end")
    end_start = file.size - tail_bytes + at
    found = _ending64(file, end_start)
    if found is not None:
        return found
    if (disk, first) != (0, 0) or here != count:
        raise malformed(file, "it is split into volumes")
    if start + size != end_start:
        raise malformed(file, "its directory is not where it says")
    return count, size, start


def _ending64(file: Bytes, end_start: int) -> tuple[int, int, int] | None:
    if end_start < _LOCATOR.size:
        return None
    signature, disk, at, disks = _LOCATOR.unpack(
        file.read(end_start - _LOCATOR.size, _LOCATOR.size)
    )
    if signature != b"PK\x06\x07":
        return None
    if disk != 0 or disks > 1 or at + _END64.size > end_start - _LOCATOR.size:
        raise malformed(file, "its zip64 directory is not where it says")
    fields = _END64.unpack(file.read(at, _END64.size))
    signature, _, _, _, disk, first, here, count, size, start = fields
    if signature != b"PK\x06\x06" or (disk, first) != (0, 0) or here != count:
        raise malformed(file, "its zip64 directory is damaged")
    if start + size != at:
        raise malformed(file, "its zip64 directory is not where it says")
    return count, size, start


def _row(file: Bytes, table: bytes, position: int) -> tuple[Entry, int]:
    if position + _ROW.size > len(table):
        raise malformed(file, "its directory has fewer records than it says")
    fields = _ROW.unpack_from(table, position)
    signature, _, _, flags, method, _, _, crc32, packed, size = fields[:10]
    name_bytes, extra_bytes, comment_bytes, disk = fields[10:14]
    header_start = fields[16]
    end = position + _ROW.size + name_bytes + extra_bytes + comment_bytes
    if signature != b"PK\x01\x02" or end > len(table):
        raise malformed(file, "a record of its directory is damaged")
    raw = table[position + _ROW.size : position + _ROW.size + name_bytes]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(file, "the name of a record is no UTF-8") from error
    extra_start = position + _ROW.size + name_bytes
    extra = table[extra_start : extra_start + extra_bytes]
    size, packed, header_start = _widened(file, extra, size, packed, header_start)
    if disk not in {0, 0xFFFF}:
        raise malformed(file, "it is split into volumes")
    return Entry(name, flags, method, crc32, size, packed, header_start), end


def _widened(
    file: Bytes, extra: bytes, size: int, packed: int, header_start: int
) -> tuple[int, int, int]:
    """The three lengths, those that did not fit taken from the zip64 field."""
    values = [size, packed, header_start]
    wanted = [index for index, value in enumerate(values) if value == _MAX32]
    if not wanted:
        return size, packed, header_start
    field = _field64(extra)
    if len(field) < 8 * len(wanted):
        raise malformed(file, "a record of its directory lacks its zip64 field")
    for number, index in enumerate(wanted):
        values[index] = int.from_bytes(field[8 * number : 8 * number + 8], "little")
    return values[0], values[1], values[2]


def _field64(extra: bytes) -> bytes:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            return extra[position + 4 : position + 4 + length]
        position += 4 + length
    return b""
