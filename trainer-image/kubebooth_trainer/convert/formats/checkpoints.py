"""Tensors of a CKPT: what its pickle describes, brought together with where its records lie.

Three containers are known: zips of old and new torch, and the legacy form of one pickle after the
other. It must not run anything of the file; see `pickles`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from kubebooth_trainer.convert.door import DTYPE_BYTES, Bytes, Check, Segment, Tensor
from kubebooth_trainer.convert.formats import zips
from kubebooth_trainer.convert.formats.pickles import (
    MAX_PICKLE_BYTES,
    BadPickle,
    Foreign,
    Found,
    Storage,
    StoredTensor,
    interpret,
)
from kubebooth_trainer.errors import DataError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_NESTS = ("state_dict", "model", "module")
"""Names under which trainers keep the tensors inside of a larger dictionary."""
_NEST_DEPTH = 3
_MOST_REMARKS = 32
_MOST_PARTS = 100_000
"""Parts of something else than tensors that are looked at to describe it."""
_MOST_TIMES = 4
"""Tensors over shared storages may be so many times as large as the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a CKPT holds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    """Texts beside the tensors, such as those that our own checkpoints carry."""
    remarks: tuple[str, ...]
    foreign: tuple[str, ...]
    """Globals besides those of tensors; none was run."""
    checks: tuple[Check, ...]
    """CRCs that the archive promises of the records used."""


def read_checkpoint(file: Bytes) -> Checkpoint:
    """Read a CKPT without running any of it. Raises `DataError`."""
    try:
        if file.size >= 4 and file.read(0, 4) == b"PK\x03\x04":
            return _from_zip(file)
        return _from_legacy(file)
    except BadPickle as error:
        raise DataError(
            f"{file.name} is no checkpoint that can be read safely: {error}; save it again as"
            " safetensors",
            reason="UnsafePickle",
        ) from error


def _from_zip(file: Bytes) -> Checkpoint:
    directory = zips.read_directory(file)
    pickled = [name for name in directory.entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickled) != 1:
        raise zips.malformed(file, f"it holds {len(pickled)} records named data.pkl instead of 1")
    root = pickled[0].removesuffix("data.pkl")
    _refuse_big_endian(file, directory, root)
    where = directory.segment(pickled[0])
    if where.length > MAX_PICKLE_BYTES:
        raise BadPickle(f"its pickle has {where.length} bytes, more than {MAX_PICKLE_BYTES}")
    stream = io.BytesIO(file.read(where.start, where.length))
    found = interpret(stream)
    if stream.tell() != where.length:
        raise BadPickle("bytes follow its end")
    tree = _tensors_of(file, found)
    used = sorted({tensor.storage.key for tensor in tree.tensors.values()})
    names = [f"{root}data/{key}" for key in used]
    records = dict(zip(used, directory.segments(names), strict=True))
    checks = [Check(where, crc32=directory.entries[pickled[0]].crc32)]
    checks += [
        Check(segment, crc32=directory.entries[name].crc32)
        for name, segment in zip(names, records.values(), strict=True)
    ]
    return _checkpoint(file, found, tree, records, tuple(checks))


def _refuse_big_endian(file: Bytes, directory: zips.Directory, root: str) -> None:
    name = f"{root}byteorder"
    if name not in directory.entries:
        return
    where = directory.segment(name)
    if where.length > 16 or file.read(where.start, where.length) != b"little":
        raise zips.malformed(file, "its values are not little-endian")


def _from_legacy(file: Bytes) -> Checkpoint:
    stream = _beginning(file)
    try:
        magic, protocol = interpret(stream).value, interpret(stream).value
    except BadPickle as error:
        raise _no_checkpoint(file) from error
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise _no_checkpoint(file)
    system = interpret(stream).value
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadPickle("its values are not little-endian")
    found = interpret(stream)
    keys = interpret(stream).value
    records = _legacy_records(file, found, keys, stream.tell())
    tree = _tensors_of(file, found)
    return _checkpoint(file, found, tree, records, ())


def _legacy_records(file: Bytes, found: Found, keys: Any, start: int) -> dict[str, Segment]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadPickle("its list of storages is damaged")
    if len(set(keys)) != len(keys):
        raise BadPickle("it lists a storage twice")
    records = {}
    for key in keys:
        storage = found.storages.get(key)
        if storage is None:
            raise BadPickle("it holds a storage that nothing refers to")
        values = int.from_bytes(file.read(start, 8), "little")
        if values != storage.values:
            raise BadPickle(f"the storage {key[:40]!r} has another length than described")
        length = values * DTYPE_BYTES.get(storage.dtype, 1)
        records[key] = Segment(file, start + 8, length)
        start += 8 + length
    if start != file.size:
        raise BadPickle(f"its storages end at byte {start} and the file at {file.size}")
    return records


def _beginning(file: Bytes) -> IO[bytes]:
    return io.BufferedReader(_Window(file, min(file.size, MAX_PICKLE_BYTES)), 1 << 16)


class _Window(io.RawIOBase):
    """The beginning of a file as a stream, so that a hostile one cannot have all of it read."""

    def __init__(self, file: Bytes, length: int) -> None:
        self._file = file
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It tells where it stands."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where it stands now; only moves by nothing are known."""
        if whence == io.SEEK_SET:
            self._at = offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the window goes."""
        length = min(len(buffer), self._length - self._at)
        if length <= 0:
            return 0
        buffer[:length] = self._file.read(self._at, length)
        self._at += length
        return length


def _no_checkpoint(file: Bytes) -> DataError:
    return DataError(
        f"{file.name} is neither a safetensors file nor a checkpoint of torch; name a model file",
        reason="UnknownFormat",
    )


@dataclass(frozen=True)
class _Tree:
    """The dictionary of tensors, and what stands beside it."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    remarks: tuple[str, ...]


def _tensors_of(file: Bytes, found: Found) -> _Tree:
    value, beside = found.value, dict[str, Any]()
    for _ in range(_NEST_DEPTH):
        nest = next(
            (name for name in _NESTS if isinstance(value, dict) and _holds_tensors(value, name)),
            None,
        )
        if nest is None:
            break
        beside.update((name, other) for name, other in value.items() if name != nest)
        value = value[nest]
    if isinstance(value, StoredTensor):
        value = {"": value}
    if not isinstance(value, dict):
        what = value.what if isinstance(value, Foreign) else type(value).__name__
        raise BadPickle(f"in place of a dictionary of tensors it holds {what}, which was not run")
    tree: dict[str, StoredTensor] = {}
    seen: set[int] = set()
    for name, item in value.items():
        if isinstance(item, StoredTensor):
            tree[name] = item
            continue
        code = next((part for part in _walk(item, seen) if isinstance(part, Foreign)), None)
        if code is not None:
            raise BadPickle(f"among its tensors, {name[:80]!r} needs {code.what} to run")
        beside[name] = item
    if not tree:
        raise DataError(f"{file.name} holds no tensors; name a model file", reason="NoTensors")
    texts = {name: item for name, item in beside.items() if isinstance(item, str)}
    others = {name: item for name, item in beside.items() if name not in texts}
    remarks = [_remark(name, item) for name, item in islice(others.items(), _MOST_REMARKS)]
    if len(others) > len(remarks):
        remarks.append(f"and {len(others) - len(remarks)} more that are no tensors")
    return _Tree(tree, texts, tuple(remarks))


def _holds_tensors(value: dict[str, Any], name: str) -> bool:
    nested = value.get(name)
    return isinstance(nested, dict) and any(isinstance(v, StoredTensor) for v in nested.values())


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every object inside of a value that was not seen yet, once."""
    pending = [value]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)


def _remark(name: str, value: Any) -> str:
    parts = islice(_walk(value, set()), _MOST_PARTS)
    tensors = sum(isinstance(part, StoredTensor) for part in parts)
    short = name if len(name) <= 60 else f"{name[:59]}…"
    if tensors:
        return f"{short}: {tensors} tensors left out"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{short}: a large number"
    if isinstance(value, (int, float)) or value is None:
        return f"{short}: {value}"
    if isinstance(value, Foreign):
        return f"{short}: {value.what[:80]}, not run"
    return f"{short}: {type(value).__name__}"


def _checkpoint(
    file: Bytes,
    found: Found,
    tree: _Tree,
    records: Mapping[str, Segment],
    checks: tuple[Check, ...],
) -> Checkpoint:
    tensors = {name: _placed(name, tensor, records) for name, tensor in tree.tensors.items()}
    total = sum(tensor_bytes(tensor) for tensor in tensors.values())
    if total > _MOST_TIMES * file.size:
        raise BadPickle(f"its tensors would take {total} bytes, far more than the file has")
    foreign = tuple(sorted(found.foreign))
    return Checkpoint(tensors, tree.metadata, tree.remarks, foreign, checks)


def tensor_bytes(tensor: Tensor) -> int:
    """Length of a tensor in bytes when it is written."""
    values = 1
    for edge in tensor.shape:
        values *= edge
    return values * DTYPE_BYTES[tensor.dtype]


def _placed(name: str, tensor: StoredTensor, records: Mapping[str, Segment]) -> Tensor:
    """A tensor over its record. Raises `BadPickle` when it reaches out of it."""
    storage = tensor.storage
    record = records[storage.key]
    if storage.dtype == "?":
        raise BadPickle(f"the tensor {name[:80]!r} has no dtype")
    width = DTYPE_BYTES[storage.dtype]
    values = _values_of(storage, width)
    if record.length < (storage.first + values) * width:
        raise BadPickle(f"the record of {name[:80]!r} is shorter than described")
    start = record.start + (storage.first + tensor.offset) * width
    if 0 in tensor.shape:
        return Tensor(storage.dtype, tensor.shape, ())
    count = 1
    for edge in tensor.shape:
        count *= edge
        if count > values:
            raise BadPickle(f"the tensor {name[:80]!r} is larger than its storage")
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset + reach > values:
        raise BadPickle(f"the tensor {name[:80]!r} reaches out of its storage")
    segments = (Segment(record.source, start, reach * width),)
    strides = None if _is_contiguous(tensor) else tensor.strides
    return Tensor(storage.dtype, tensor.shape, segments, strides)


def _values_of(storage: Storage, width: int) -> int:
    """Number of values; an untyped storage was described in bytes and typed by its tensor."""
    return storage.values // width if storage.untyped else storage.values


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for edge, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if edge != 1 and stride != expected:
            return False
        expected *= edge
    return True
