"""Folders of a model: which of their weights are the model, shards brought together.

It knows the file names of Diffusers and Transformers; it must not know families.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kubebooth_trainer.convert.door import Bytes, Check, Opened, Tensor
from kubebooth_trainer.convert.formats.checkpoints import read_checkpoint
from kubebooth_trainer.convert.formats.places import Folder
from kubebooth_trainer.convert.formats.safetensors import read_header
from kubebooth_trainer.errors import DataError

MAX_TEXT_BYTES = 16 << 20
_MAX_TEXTS_BYTES = 48 << 20
_TEXTS = (".json", ".txt", ".model", ".yaml", ".yml", ".jinja")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_SAFE = ".safetensors"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model", "adapter_model",
          "pytorch_lora_weights")  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    """One complete set of weights of a component."""

    variant: str
    """Such as `fp16`; empty for the plain one."""
    safe: bool
    files: tuple[str, ...]
    index: str | None = None


def open_folder(folder: Folder, *, weights: str | None = None) -> Opened:
    """Open a folder; `weights` names a variant of files, such as `fp16`.

    Without it the plain files are taken, or the only variant there is. Safetensors is taken before
    pickles. Raises `DataError`.
    """
    by_component = _by_component(folder.files)
    if not by_component:
        raise DataError(
            f"{folder.name} holds no weights; name the folder of a model, with model_index.json or"
            " config.json in it",
            reason="NoModel",
        )
    tensors: dict[str, Tensor] = {}
    remarks: list[str] = []
    foreign: set[str] = set()
    checks: list[Check] = []
    for component, paths in sorted(by_component.items()):
        choice = _choose(folder, component, paths, weights, remarks)
        found = _read(folder, component, choice)
        prefix = f"{component}/" if component else ""
        tensors.update((f"{prefix}{name}", tensor) for name, tensor in found.tensors.items())
        remarks += found.remarks
        foreign.update(found.foreign)
        checks += found.checks
    return Opened(
        "Diffusers",
        tensors,
        texts=_texts(folder),
        metadata={},
        remarks=tuple(remarks),
        foreign=tuple(sorted(foreign)),
        checks=tuple(checks),
    )


def lonely_file(files: Mapping[str, int]) -> str | None:
    """The one single-file checkpoint of a folder that is no layout; None where it is one."""
    if any(path in files for path in ("model_index.json", "config.json", "adapter_config.json")):
        return None
    weights = [path for path in files if path.endswith(_WEIGHTS)]
    if len(weights) != 1 or "/" in weights[0]:
        return None
    stem = weights[0].rpartition(".")[0].partition(".")[0]
    return None if stem in _STEMS else weights[0]


def _by_component(files: Iterable[str]) -> dict[str, list[str]]:
    """Weight files and indexes by the folder they stand in; deeper folders hold no components."""
    found: dict[str, list[str]] = {}
    for path in files:
        component, _, name = path.rpartition("/")
        if "/" not in component and (name.endswith(_WEIGHTS) or _INDEX.search(name)):
            found.setdefault(component, []).append(path)
    if len(found) > 1:
        # Beside components, a single file at the top is the same model once more.
        found.pop("", None)
    return {
        component: paths
        for component, paths in found.items()
        if any(path.endswith(_WEIGHTS) for path in paths)
        or any(_INDEX.search(path) for path in paths)
    }


def _choose(
    folder: Folder, component: str, paths: list[str], weights: str | None, remarks: list[str]
) -> _Choice:
    found = _choices(folder, paths)
    # Beside files of the usual names, others are the same model once more, for other programs.
    choices = [choice for choice in found if _stem(choice.files[0]) in _STEMS] or found
    variants = sorted({choice.variant for choice in choices})
    wanted = weights if weights in variants else ""
    if wanted not in variants:
        if len(variants) > 1:
            raise DataError(
                f"{component or folder.name} has the weights {', '.join(variants)} and no plain"
                " ones; name one of them with --weights",
                reason="AmbiguousWeights",
            )
        wanted = variants[0]
    fitting = sorted((c for c in choices if c.variant == wanted), key=lambda c: not c.safe)
    same = [c for c in fitting if c.safe == fitting[0].safe]
    if len(same) > 1:
        names = ", ".join(sorted(c.files[0] for c in same))
        raise DataError(
            f"{component or folder.name} holds several models: {names}; keep one of them",
            reason="AmbiguousWeights",
        )
    others = len(found) - 1
    if others:
        remarks.append(f"{fitting[0].files[0]} taken, {others} other forms of it left out")
    return fitting[0]


def _choices(folder: Folder, paths: list[str]) -> list[_Choice]:
    found = []
    covered: set[str] = set()
    for path in paths:
        if _INDEX.search(path):
            files = _shards(folder, path)
            covered.update(files)
            safe = files[0].endswith(_SAFE)
            found.append(_Choice(_variant(path), safe, files, index=path))
    for path in paths:
        if path in covered or _INDEX.search(path):
            continue
        if _SHARD.search(path):
            raise DataError(f"{path} is a part of a model whose index is missing; add the"
                            " .index.json file", reason="MissingShard")  # fmt: skip
        found.append(_Choice(_variant(path), path.endswith(_SAFE), (path,)))
    return found


def _variant(path: str) -> str:
    """`model.fp16.safetensors` → `fp16`, `model.safetensors.index.fp16.json` → `fp16`."""
    name = path.rpartition("/")[2]
    middle = _INDEX.search(name)
    if middle is not None and middle.group(1):
        return middle.group(1)[1:]
    name = _SHARD.sub("", name[: middle.start()] if middle else name)
    parts = name.split(".")[1:-1]
    return parts[-1] if parts and not parts[-1].isdigit() else ""


def _stem(path: str) -> str:
    """`unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors` → `diffusion_pytorch_model`"""
    return _SHARD.sub("", path.rpartition("/")[2]).partition(".")[0]


def _shards(folder: Folder, index: str) -> tuple[str, ...]:
    """The files that an index names. Raises `DataError` for those that are missing."""
    rows = _weight_map(folder, index)
    component = index.rpartition("/")[0]
    names = sorted(set(rows.values()))
    for name in names:
        path = f"{component}/{name}" if component else name
        if "/" in name or not name.endswith(_WEIGHTS) or path not in folder.files:
            raise DataError(
                f"{index} names the part {name[:100]!r}, which is missing; copy all parts",
                reason="MissingShard",
            )
    return tuple(f"{component}/{name}" if component else name for name in names)


def _weight_map(folder: Folder, index: str) -> dict[str, str]:
    try:
        rows = json.loads(_read_text(folder, index))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{index} is no valid index of parts; copy it again",
                        reason="MalformedIndex") from error  # fmt: skip
    good = isinstance(rows, dict) and rows and all(isinstance(v, str) for v in rows.values())
    if not good:
        raise DataError(f"{index} names no parts; copy it again", reason="MalformedIndex")
    return dict(rows)


def _read(folder: Folder, component: str, choice: _Choice) -> Opened:
    tensors: dict[str, Tensor] = {}
    remarks: list[str] = []
    foreign: list[str] = []
    checks: list[Check] = []
    for path in choice.files:
        found = open_weights(folder.open(path))
        for name, tensor in found.tensors.items():
            if name in tensors:
                raise DataError(f"{path} holds {name[:80]!r}, which another part holds too;"
                                " copy all parts again", reason="MalformedIndex")  # fmt: skip
            tensors[name] = tensor
        remarks += [f"{path}: {remark}" for remark in found.remarks]
        foreign += found.foreign
        checks += found.checks
    if choice.index is not None:
        missing = sorted(set(_weight_map(folder, choice.index)) - set(tensors))
        if missing:
            raise DataError(
                f"{choice.index} promises {missing[0][:80]!r} and {len(missing) - 1} more tensors"
                " that no part holds; copy all parts again",
                reason="MissingShard",
            )
    return Opened(
        "Diffusers", tensors, remarks=tuple(remarks), foreign=tuple(foreign), checks=tuple(checks)
    )


def open_weights(file: Bytes) -> Opened:
    """Open one file of weights by what it holds, not by its name. Raises `DataError`."""
    start = file.read(0, min(9, file.size))
    # A safetensors header may be of any length, so its first bytes may look like a pickle's.
    pickle = start[:1] == b"\x80" and start[8:9] != b"{"
    if start[:4] == b"PK\x03\x04" or pickle or file.size < 9:
        found = read_checkpoint(file)
        return Opened(
            "Ckpt",
            found.tensors,
            metadata=found.metadata,
            remarks=found.remarks,
            foreign=found.foreign,
            checks=found.checks,
        )
    if start[8:9] != b"{" and file.name.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise DataError(
            f"{file.name} is no checkpoint of torch; download it again", reason="UnknownFormat"
        )
    header = read_header(file)
    return Opened("Safetensors", header.tensors, metadata=header.metadata)


def _texts(folder: Folder) -> dict[str, bytes]:
    texts = {}
    total = 0
    for path, size in folder.files.items():
        if not path.endswith(_TEXTS) or _INDEX.search(path) or size > MAX_TEXT_BYTES:
            continue
        total += size
        if total > _MAX_TEXTS_BYTES:
            raise DataError(f"{folder.name} holds too many texts; name the folder of one model",
                            reason="NoModel")  # fmt: skip
        texts[path] = _read_text(folder, path)
    return texts


def _read_text(folder: Folder, path: str) -> bytes:
    if folder.files[path] > MAX_TEXT_BYTES:
        raise DataError(f"{path} is too large for what it is; copy it again", reason="NoModel")
    file = folder.open(path)
    return file.read(0, file.size)
