"""A fetched single-file checkpoint: what it is called, and how it becomes a Diffusers layout.

What it is is told by its first bytes; no name of the source is ever used for a file.
"""

from __future__ import annotations

from pathlib import Path

from kubebooth_api.artifacts import Manifest
from kubebooth_api.v1alpha1.conversion import Detected
from kubebooth_store import Store

from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.meter import Meter
from kubebooth_trainer.convert.options import Options, SourceVariant
from kubebooth_trainer.convert.planning import plan
from kubebooth_trainer.convert.stage import detected_of
from kubebooth_trainer.convert.stored.targets import publish_plan
from kubebooth_trainer.convert.writing.targets import Wish
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.reporter import Reporter

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


def form_of_name(name: str) -> str:
    """Form of a single file, by the name that it got here."""
    return "Ckpt" if name == CKPT else "Safetensors"


def form_of(manifest: Manifest) -> str:
    """Form of a published model, as `Artifact.format` tells it."""
    names = {file.path for file in manifest.files}
    if names == {SAFETENSORS}:
        return "Safetensors"
    return "Ckpt" if names == {CKPT} else "Diffusers"


def to_layout(
    path: Path, store: Store, prefix: str, *, variant: SourceVariant, reporter: Reporter
) -> tuple[Manifest, Detected]:
    """Convert a single file into a published Diffusers layout; nothing of it is run.

    Raises `DataError` with the evidence for a model of another variant, and what converting raises.
    """
    opened = open_local(path)
    planned = plan(opened, Options(form="Diffusers", variant=variant))
    wish = Wish(read_back=True, finite=True)
    published = publish_plan(
        planned,
        store,
        prefix,
        wish,
        checks=opened.checks,
        metadata={"form": form_of_name(path.name)},
        tell=Meter(reporter, "Fetch", planned, wish, opened.checks),
    )
    return published.manifest, detected_of(planned)
