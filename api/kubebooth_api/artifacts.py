"""What the store publishes: manifests of files, artifacts and checkpoints by URI and digest."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from kubebooth_api.digests import Digest, digest_json
from kubebooth_api.door import Door

RelativePath = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=1024,
        pattern=r"^(?:[^/\\\x00-\x1f]+)(?:/[^/\\\x00-\x1f]+)*$",
    ),
]
"""A `/`-separated relative path without control characters or backslashes; see `FileEntry`."""

Uri = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
"""`s3://bucket/key` or `file:///path`."""


UNKNOWN_DIGEST = f"sha256:{'0' * 64}"
"""Digest of an `Artifact` that is only named by its place: whoever reads it takes what stands
there, and its size of 0 says nothing."""


class FileEntry(Door):
    """One file of a manifest."""

    path: RelativePath
    """Path below the manifest's own folder; `.` and `..` are refused."""
    size: Annotated[int, Field(ge=0)]
    """Size in bytes."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the content, 64 hex digits."""

    @model_validator(mode="after")
    def _stay_inside(self) -> Self:
        if any(part in {".", ".."} for part in self.path.split("/")):
            raise ValueError(f"path {self.path!r} leaves its folder")
        return self


def files_digest(files: tuple[FileEntry, ...]) -> str:
    """Digest of a set of files: SHA-256 of the canonical JSON of `[[path, size, sha256], …]`,
    sorted by path."""
    return digest_json([[f.path, f.size, f.sha256] for f in sorted(files, key=lambda f: f.path)])


class Manifest(Door):
    """The last file written to a published folder; a folder without one does not exist."""

    kind: Literal["dataset", "model", "checkpoint", "class-images", "artifact", "samples", "cache"]
    """What the folder holds."""
    digest: Digest
    """Digest of the files, see `files_digest`."""
    files: Annotated[tuple[FileEntry, ...], Field(max_length=100_000)]
    """Every file of the folder except the manifest itself."""
    created_at: datetime
    """UTC time of publishing; not part of the digest."""
    metadata: dict[str, Any] = {}
    """Facts about the content by kind, such as stage and step; not part of the digest."""

    @model_validator(mode="after")
    def _digest_is_true(self) -> Self:
        if self.digest != files_digest(self.files):
            raise ValueError("digest does not match the files listed: the manifest was altered")
        return self

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files, in bytes."""
        return sum(file.size for file in self.files)


class Artifact(Door):
    """A published thing: where it is and what its bytes are."""

    name: Annotated[str, StringConstraints(max_length=63)]
    """Name unique within its owner, such as `diffusers`."""
    uri: Uri
    """Where it stands in the store."""
    digest: Digest
    """Digest of its files."""
    size: Annotated[int, Field(ge=0)]
    """Size in bytes."""
    format: Annotated[str, StringConstraints(max_length=32)] | None = None
    """`Diffusers`, `Safetensors`, `Ckpt`, `Png` or absent."""


class Checkpoint(Door):
    """A durable, resumable training state."""

    stage: Annotated[str, StringConstraints(max_length=32)]
    """Training stage it belongs to: `TextEncoder`, `Concept` or `Denoiser`."""
    step: Annotated[int, Field(ge=0)]
    """Updates of the stage it holds, exactly."""
    uri: Uri
    """Where it stands in the store."""
    digest: Digest
    """Digest of its files."""
    size: Annotated[int, Field(ge=0)]
    """Size in bytes."""
    created_at: datetime
    """UTC time at which it became durable."""
