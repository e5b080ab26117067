"""What a fetched single-file checkpoint is called and what form it has, told by its first bytes.

No name of the source is ever used for a file.
"""

from __future__ import annotations

from pathlib import Path

from kubebooth_api.artifacts import Manifest

from kubebooth_trainer.errors import DataError

SAFETENSORS, CKPT = "model.safetensors", "model.ckpt"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAX_HEADER = 100_000_000


def name_of(path: Path) -> str:
    """`model.safetensors` or `model.ckpt`. Raises `DataError` for a file that is neither."""
    with path.open("rb") as file:
        first = file.read(9)
    if first.startswith(_ZIP) or first.startswith(_PICKLE):
        return CKPT
    header = int.from_bytes(first[:8], "little")
    if first[8:] == b"{" and 0 < header <= min(_MAX_HEADER, path.stat().st_size - 8):
        return SAFETENSORS
    told = "a web page" if first.lstrip()[:1] == b"<" else "neither safetensors nor a checkpoint"
    raise DataError(
        f"the fetched file is {told}; url.href must be the address of the file itself",
        reason="SourceInvalid",
    )


def form_of(manifest: Manifest) -> str:
    """Form of a published model, as `Artifact.format` tells it."""
    names = {file.path for file in manifest.files}
    if names == {SAFETENSORS}:
        return "Safetensors"
    return "Ckpt" if names == {CKPT} else "Diffusers"
