"""Opens whatever a source is, a file or a folder, on disk; stores are opened by `stored`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubebooth_trainer.convert.door import Bytes, Check, Opened, Segment
from kubebooth_trainer.convert.formats.folders import (
    MAX_TEXT_BYTES,
    lonely_file,
    open_folder,
    open_weights,
)
from kubebooth_trainer.convert.formats.places import Folder, LocalFile, local_folder
from kubebooth_trainer.errors import ConfigurationError

_HASH = "modelspec.hash_sha256"


def open_local(path: Path, *, weights: str | None = None) -> Opened:
    """Open a model on disk. Raises `ConfigurationError` and `DataError`."""
    if path.is_dir():
        return open_tree(local_folder(path), weights=weights)
    file = LocalFile(path)
    return open_single(file, beside=_yaml_of(path))


def open_tree(folder: Folder, *, weights: str | None = None) -> Opened:
    """Open a folder: a layout, or a single file that stands alone in it."""
    lonely = lonely_file(folder.files)
    if lonely is None:
        return open_folder(folder, weights=weights)
    yaml = f"{lonely.rpartition('.')[0]}.yaml"
    beside = folder.open(yaml) if yaml in folder.files else None
    return open_single(folder.open(lonely), beside=beside)


def open_single(file: Bytes, *, beside: Bytes | None) -> Opened:
    """Open a single file, with the YAML that stands beside it."""
    opened = open_weights(file)
    checks = opened.checks
    promised = opened.metadata.get(_HASH, "").removeprefix("0x").lower()
    if opened.form == "Safetensors" and len(promised) == 64:
        start = min(
            (tensor.segments[0].start for tensor in opened.tensors.values()), default=file.size
        )
        checks = (Check(Segment(file, start, file.size - start), sha256=promised),)
    texts = {}
    if beside is not None and beside.size <= MAX_TEXT_BYTES:
        texts[beside.name] = beside.read(0, beside.size)
    return replace(opened, texts=texts, checks=checks)


def _yaml_of(path: Path) -> LocalFile | None:
    try:
        return LocalFile(path.with_suffix(".yaml"))
    except ConfigurationError:
        return None
