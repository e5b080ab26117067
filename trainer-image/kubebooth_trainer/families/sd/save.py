"""Writes a complete Diffusers layout that transformers 4 and 5 both read.

Trained components get canonical keys in our own hand; everything else is copied byte by byte from
the base model. Pickles and code are never copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.door import Part, PrecisionName
from kubebooth_trainer.families.sd import files, text

COMPONENTS: dict[Part, str] = {"textEncoder": "text_encoder", "denoiser": "unet"}
DTYPES = {"Fp16": torch.float16, "Bf16": torch.bfloat16, "Fp32": torch.float32}
PLAIN = (".json", ".txt", ".model")
"""Files besides weights that are copied from the base."""
KNOWS_ZERO_SNR = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


def write_layout(
    base: Path,
    folder: Path,
    *,
    trained: Mapping[Part, Mapping[str, Tensor]],
    precision: PrecisionName,
    zero_terminal_snr: bool,
) -> None:
    """Write the layout of `base` with the trained parts' tensors into `folder`.

    `Keep` writes each component in the dtype its base file has.
    """
    index = files.read_json(base, files.MODEL_INDEX)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / files.MODEL_INDEX, folder / files.MODEL_INDEX)
    ours = {COMPONENTS[part]: tensors for part, tensors in trained.items()}
    for name in sorted(index):
        if name.startswith("_") or "/" in name or not (base / name).is_dir():
            continue
        (folder / name).mkdir()
        _copy_plain(base / name, folder / name)
        if name in ours:
            source = files.read_weights(base, name).dtype
            tensors = text.canonical(ours[name]) if name == "text_encoder" else ours[name]
            _save(tensors, folder / name / f"{files.STEMS[name]}.safetensors",
                  dtype=DTYPES.get(precision, source))  # fmt: skip
            continue
        _copy_weights(base / name, folder / name, precision)
    _write_slow_tokenizer(folder / "tokenizer")
    if zero_terminal_snr:
        _write_zero_snr(folder)


def _copy_plain(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.is_symlink() and path.suffix in PLAIN:
            shutil.copyfile(path, target / path.name)


def _copy_weights(source: Path, target: Path, precision: PrecisionName) -> None:
    plain = [p for p in sorted(source.glob("*.safetensors")) if p.is_file()]
    for path in plain:
        name = path.name.replace(".fp16.safetensors", ".safetensors")
        if name != path.name and (source / name).is_file():
            continue
        if precision == "Keep":
            shutil.copyfile(path, target / name)
        else:
            _save(load_file(path), target / name, dtype=DTYPES[precision])


def _save(tensors: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype) -> None:
    ready = {
        key: (t.detach().to("cpu", dtype) if t.is_floating_point() else t.cpu()).contiguous()
        for key, t in tensors.items()
    }
    save_file(ready, path, metadata={"format": "pt"})


def _write_slow_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt out of tokenizer.json, for readers that know no tokenizer.json."""
    if (folder / "vocab.json").exists() or not (folder / "tokenizer.json").exists():
        return
    model = files.read_json(folder, "tokenizer.json").get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError("base model: tokenizer/tokenizer.json holds no BPE vocabulary")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")


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
