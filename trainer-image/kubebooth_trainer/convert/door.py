"""What the converter's two halves say to each other: files and bytes on one side, names on the
other. Standard library only; it must not know stores, torch or numpy.

`formats` open a source into an `Opened`; `planning` turns it into a `Plan`; `writing` streams the
plan's files; `proof` reads them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Names of dtypes as safetensors spells them → bytes of one value."""


class Bytes(Protocol):
    """Random access to one file, wherever it stands: a path, or an object of a store."""

    @property
    def name(self) -> str:
        """What to call it towards the user."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def descriptor(self) -> int | None:
        """File descriptor for copies inside the kernel; None where there is none."""

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises `StorageError` or `DataError`."""


@dataclass(frozen=True)
class Segment:
    """A run of bytes of one file."""

    source: Bytes
    start: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in its file: row-major, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    """Its bytes in order; more than one where it was laid together from others."""
    strides: tuple[int, ...] | None = None
    """Strides in values where it is not contiguous, as old pickled checkpoints have; else None."""


Form = Literal["Diffusers", "Safetensors", "Ckpt"]


@dataclass(frozen=True)
class Check:
    """What a source promises of its own bytes; one of the two is given."""

    segment: Segment
    crc32: int | None = None
    sha256: str | None = None
    """64 hex digits."""


@dataclass(frozen=True)
class Opened:
    """A source whose headers were read; no tensor data was."""

    form: Form
    tensors: Mapping[str, Tensor]
    """By full name: of a folder, the component and a slash before the name of the tensor, such as
    `unet/conv_in.weight`; of a single file the name alone, a nested `state_dict` taken off."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """Small files of a folder (JSON, tokenizer) and a YAML beside a single file, by relative
    path."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """`__metadata__` of a single safetensors file."""
    remarks: tuple[str, ...] = ()
    """What was found besides tensors, such as optimizer state."""
    foreign: tuple[str, ...] = ()
    """Globals that pickles name besides those of tensors; nothing of it was run."""
    checks: tuple[Check, ...] = ()
    """What the source promises of its bytes; looked at before anything written is shown."""


@dataclass(frozen=True)
class Copy:
    """The bytes as they are, in order."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Compute:
    """What takes arithmetic or a shuffle; `how` is the name of the step.

    Cast, Gather: every input is laid out row-major (by its strides, if it has any), cast to the
    dtype of the `Planned` where that differs, and the inputs follow one another.
    Transpose: the same of one two-dimensional input, with its dimensions exchanged.
    Merge: `inputs[0]` plus the low-rank updates, summed in float32, cast to the dtype of the
    `Planned`.
    """

    how: Literal["Cast", "Transpose", "Gather", "Merge"]
    inputs: tuple[Tensor, ...]
    weights: tuple[float, ...] = ()
    """Merge: strength of each low-rank update; its down and up tensors follow the base in
    `inputs`: base + Σ weight · (up as [out, r]) @ (down as [r, in]), in the base's shape."""


@dataclass(frozen=True)
class Planned:
    """One tensor to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Copy | Compute
    sources: tuple[str, ...]
    """Names of the source tensors it is made from."""


@dataclass(frozen=True)
class PlannedFile:
    """One file to write, its tensors in the order of their bytes."""

    path: str
    """Relative path; of a single-file target the file's own name."""
    form: Literal["Safetensors", "Ckpt", "Text"]
    tensors: tuple[Planned, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    text: bytes = b""


@dataclass(frozen=True)
class Plan:
    """All that will be written, and what will not."""

    family: str
    variant: str
    prediction_type: str
    evidence: tuple[str, ...]
    files: tuple[PlannedFile, ...]
    dropped: Mapping[str, str]
    """Source tensor → why it is left out on purpose."""
