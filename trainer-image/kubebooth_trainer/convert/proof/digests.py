"""Digests of each tensor as it should be and as it stands in the output, and whether it is finite.

It reads the output by the same readers as any source, so that what it accepts can be opened again.
It must not know where files stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kubebooth_trainer.convert.door import (
    Bytes,
    Check,
    Copy,
    Plan,
    Planned,
    PlannedFile,
    Segment,
    Tensor,
)
from kubebooth_trainer.convert.formats.folders import open_weights
from kubebooth_trainer.convert.writing.computing import computed
from kubebooth_trainer.convert.writing.local import crc_of, pieces_of
from kubebooth_trainer.convert.writing.streams import read_ahead
from kubebooth_trainer.errors import DataError, StorageFault

OnBytes = Callable[[int], None]
_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000),
              "F64": ("<u8", 0x7FF0000000000000), "F8_E5M2": ("<u1", 0x7C)}  # fmt: skip
_MOST_NAMED = 5


@dataclass(frozen=True)
class Proof:
    """What was found; complete only when nothing was wrong."""

    digests: Mapping[str, Mapping[str, str]]
    """Path of the file → name of the tensor → SHA-256 of its bytes in hex."""
    is_finite: bool | None
    """None where it was not looked at."""


@dataclass
class _Verdict:
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)


def prove(
    plan: Plan,
    open_output: Callable[[str], Bytes],
    *,
    finite: bool,
    parallel: int,
    piece_bytes: int,
    tell: OnBytes,
    known: Mapping[tuple[str, str], str] | None = None,
) -> Proof:
    """Read every written file again and compare it with what was planned.

    `known` are digests by file and tensor that were taken while the bytes passed; of all other
    tensors the source is read again. Raises `StorageFault` when bytes differ, `DataError` when a
    tensor holds NaN or infinity.
    """
    verdict = _Verdict()
    for file in plan.files:
        if file.form == "Text":
            _compare_text(file, open_output(file.path), verdict)
            continue
        there = _matching(file, open_output(file.path), verdict)
        verdict.digests[file.path] = {}

        def look(
            planned: Planned, path: str = file.path, there: Mapping[str, Tensor] = there
        ) -> None:
            given = (known or {}).get((path, planned.name))
            wanted = given or _digest(expected_pieces(planned, piece_bytes))
            found, is_finite = _examined(there[planned.name], finite, piece_bytes, tell)
            verdict.digests[path][planned.name] = found
            if found != wanted:
                verdict.wrong.append(planned.name)
            if not is_finite:
                verdict.infinite.append(planned.name)

        with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="proof") as pool:
            for _ in pool.map(look, [t for t in file.tensors if t.name in there]):
                pass
    _judge(verdict)
    return Proof(
        {path: dict(sorted(rows.items())) for path, rows in verdict.digests.items()},
        True if finite else None,
    )


def _judge(verdict: _Verdict) -> None:
    if verdict.wrong:
        raise StorageFault(
            f"{len(verdict.wrong)} tensors do not read back as they were written"
            f" ({_few(verdict.wrong)}); the disk or the store damages bytes: try again, elsewhere",
            reason="ProofFailed",
        )
    if verdict.infinite:
        raise DataError(
            f"{len(verdict.infinite)} tensors hold NaN or infinity ({_few(verdict.infinite)});"
            " the source is damaged, or the precision is too low for it: keep it or use Bf16 or"
            " Fp32, or allow it with verify.finite: false",
            reason="NotFinite",
        )


def check_source(checks: Iterable[Check], *, tell: OnBytes) -> None:
    """Compare a source with what it promises of itself. Raises `DataError`."""
    for check in checks:
        segment = check.segment
        good = True
        if check.crc32 is not None:
            good = crc_of((segment,)) == check.crc32
        if check.sha256 is not None:
            good = _digest(read_ahead((segment,))) == check.sha256
        tell(segment.length)
        if not good:
            raise DataError(
                f"{segment.source.name} is damaged: bytes {segment.start} to"
                f" {segment.start + segment.length} are not those that were saved; copy or download"
                " it again",
                reason="DamagedSource",
            )


def expected_pieces(planned: Planned, piece_bytes: int) -> Iterator[bytes]:
    """The bytes that a planned tensor must have, made from its source."""
    if isinstance(planned.data, Copy):
        return pieces_of(planned.data.segments, piece_bytes)
    return computed(planned)


def is_finite(data: bytes, dtype: str) -> bool:
    """Whether no value of a float dtype has all bits of its exponent set; others are finite."""
    import numpy as np

    if dtype == "F8_E4M3":
        return not bool(((np.frombuffer(data, np.uint8) & 0x7F) == 0x7F).any())
    kind, mask = _EXPONENTS.get(dtype, ("", 0))
    if not kind or not data:
        return True
    bits = np.frombuffer(data, np.dtype(kind))
    return int((bits & bits.dtype.type(mask)).max()) != mask


def _matching(file: PlannedFile, there: Bytes, verdict: _Verdict) -> Mapping[str, Tensor]:
    """The tensors of an output, after it was opened as any source would be."""
    try:
        found = open_weights(there).tensors
    except DataError as error:
        raise StorageFault(
            f"what was written as {file.path} cannot be read again ({error.message}); try again",
            reason="ProofFailed",
        ) from error
    for planned in file.tensors:
        tensor = found.get(planned.name)
        if tensor is None or (tensor.dtype, tensor.shape) != (planned.dtype, planned.shape):
            verdict.wrong.append(planned.name)
    verdict.wrong += sorted(set(found) - {planned.name for planned in file.tensors})
    return {name: tensor for name, tensor in found.items() if name not in verdict.wrong}


def _compare_text(file: PlannedFile, there: Bytes, verdict: _Verdict) -> None:
    if there.size != len(file.text) or there.read(0, there.size) != file.text:
        verdict.wrong.append(file.path)


def _examined(tensor: Tensor, finite: bool, piece_bytes: int, tell: OnBytes) -> tuple[str, bool]:
    hasher: Any = hashlib.sha256()
    fine = True
    for piece in pieces_of(tensor.segments, piece_bytes):
        hasher.update(piece)
        fine = fine and (not finite or is_finite(piece, tensor.dtype))
        tell(len(piece))
    return hasher.hexdigest(), fine


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _few(names: list[str]) -> str:
    return ", ".join(repr(name[:80]) for name in sorted(names)[:_MOST_NAMED])


def whole_check(file: Bytes, sha256: str) -> Check:
    """A promise about all bytes of a file."""
    return Check(Segment(file, 0, file.size), sha256=sha256)
