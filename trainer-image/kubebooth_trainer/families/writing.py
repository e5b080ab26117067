"""Writes a complete Diffusers layout that transformers 4 and 5 both read.

Trained components get the keys their family gives them; everything else is copied byte by byte from
the base model. Pickles and code are never copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import files
from kubebooth_trainer.families.door import PrecisionName

DTYPES = {"Fp16": torch.float16, "Bf16": torch.bfloat16, "Fp32": torch.float32}
PLAIN = (".json", ".txt", ".model")
"""Files besides weights that are copied from the base."""
INDEX = ".index.json"
SHARD_BYTES = 10 * 10**9
"""Greatest weight file that is written, as Diffusers has it; more goes into several files."""
KNOWS_ZERO_SNR = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


def write_layout(
    base: Path,
    folder: Path,
    *,
    trained: Mapping[str, Mapping[str, Tensor]],
    precision: PrecisionName,
    zero_terminal_snr: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the layout of `base` with the tensors of each trained component into `folder`.

    `trained` has the keys that belong into files. `Keep` writes each component in the dtype its
    base file has.
    """
    index = files.read_json(base, files.MODEL_INDEX)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / files.MODEL_INDEX, folder / files.MODEL_INDEX)
    for name in sorted(index):
        if not name.isidentifier() or name.startswith("_") or not (base / name).is_dir():
            continue
        (folder / name).mkdir()
        _copy_plain(base / name, folder / name)
        if name in trained:
            dtype = DTYPES.get(precision) or files.weight_files(base, name).dtype
            _save(trained[name].items(), folder / name, dtype=dtype, shard_bytes=shard_bytes)
        elif any((base / name).glob("*.safetensors")):
            _copy_weights(base, name, folder / name, precision, shard_bytes=shard_bytes)
        if _is_clip_tokenizer(index[name]):
            _write_slow_tokenizer(folder, name)
    if zero_terminal_snr:
        _write_zero_snr(folder)


def _copy_plain(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        weights = path.name.endswith(".json") and ".safetensors.index" in path.name
        wanted = path.is_file() and not path.is_symlink() and path.suffix in PLAIN
        if wanted and not weights:
            shutil.copyfile(path, target / path.name)


def _copy_weights(
    base: Path, component: str, target: Path, precision: PrecisionName, *, shard_bytes: int
) -> None:
    weights = files.weight_files(base, component)
    if precision != "Keep":
        _save(weights.tensors(), target, dtype=DTYPES[precision], shard_bytes=shard_bytes)
        return
    stem = files.stem_of(component)
    names = _names(stem, len(weights.paths))
    for path, name in zip(weights.paths, names, strict=True):
        shutil.copyfile(path, target / name)
    if len(names) > 1:
        table = {
            key: name
            for path, name in zip(weights.paths, names, strict=True)
            for key in files.keys_of(path, component)
        }
        size = sum(path.stat().st_size for path in weights.paths)
        _write_index(target / f"{stem}.safetensors{INDEX}", table, size=size)


def _save(
    tensors: Iterable[tuple[str, Tensor]], target: Path, *, dtype: torch.dtype, shard_bytes: int
) -> None:
    """One file, or several under an index; no more than one of them is in memory."""
    stem = files.stem_of(target.name)
    table: dict[str, int] = {}
    size, count = 0, 0
    for shard in _shards(tensors, dtype=dtype, shard_bytes=shard_bytes):
        save_file(shard, target / f"{stem}.{count}.part", metadata={"format": "pt"})
        table |= dict.fromkeys(shard, count)
        size += sum(t.nbytes for t in shard.values())
        count += 1
    names = _names(stem, count)
    for number, name in enumerate(names):
        (target / f"{stem}.{number}.part").rename(target / name)
    if count > 1:
        named = {key: names[number] for key, number in table.items()}
        _write_index(target / f"{stem}.safetensors{INDEX}", named, size=size)


def _shards(
    tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for key, tensor in tensors:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        ready = tensor.detach().to("cpu", wanted).contiguous()
        if shard and size + ready.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = ready
        size += ready.nbytes
    yield shard


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _write_index(path: Path, table: Mapping[str, str], *, size: int) -> None:
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _is_clip_tokenizer(entry: Any) -> bool:
    return isinstance(entry, list) and entry[-1:] in (["CLIPTokenizer"], ["CLIPTokenizerFast"])


def _write_slow_tokenizer(folder: Path, component: str) -> None:
    """vocab.json and merges.txt out of tokenizer.json, for readers that know no tokenizer.json."""
    place = folder / component
    if (place / "vocab.json").exists() or not (place / "tokenizer.json").exists():
        return
    model = files.read_json(folder, f"{component}/tokenizer.json").get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError(f"base model: {component}/tokenizer.json holds no BPE vocabulary")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    (place / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


def _write_zero_snr(folder: Path) -> None:
    """Tell samplers of the rescaled schedule; without it pictures come out grey."""
    name = "scheduler/scheduler_config.json"
    config = files.read_json(folder, name)
    if config.get("_class_name") not in KNOWS_ZERO_SNR:
        raise DataError(
            f"base model: {name} names {config.get('_class_name')!r}, which knows no zero terminal"
            f" SNR; use one of {', '.join(KNOWS_ZERO_SNR)} or turn training.zeroTerminalSnr off"
        )
    config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    (folder / name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
