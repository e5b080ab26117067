"""Reads the files of a Diffusers layout as data only: JSON and safetensors, never pickles.

It must not know families. One tensor is in memory beside the result, whatever the file's size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kubebooth_trainer.errors import DataError

MODEL_INDEX = "model_index.json"
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
OF_DIFFUSERS = ("unet", "transformer", "vae")
"""Components whose weight files have the name that Diffusers gives; others have Transformers'."""
VARIANTS = ("", ".fp16")
"""Forms of a component's files, the preferred first."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Floating point types of safetensors."""


def stem_of(component: str) -> str:
    """What the component's weight files are called, without suffix."""
    return DIFFUSERS_STEM if component in OF_DIFFUSERS else TRANSFORMERS_STEM


def read_index(folder: Path, *, pipeline: str) -> dict[str, Any]:
    """The index of a layout. Raises `DataError` when it is of another pipeline."""
    index = read_json(folder, MODEL_INDEX)
    if index.get("_class_name") != pipeline:
        raise DataError(
            f"base model: {MODEL_INDEX} names {index.get('_class_name')!r}; this variant needs a"
            f" {pipeline}"
        )
    return index


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the layout. Raises `DataError` that names the file."""
    path = folder / name
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"base model: {name} is missing; upload a complete Diffusers layout"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"base model: {name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"base model: {name} should hold a JSON object")
    return value


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files that together hold one component."""

    component: str
    paths: tuple[Path, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor one after the other, on the CPU, as they stand in the files.

        Raises `DataError` for a broken file, a name that comes twice, or NaN weights.
        """
        seen: set[str] = set()
        for path in self.paths:
            told = f"{self.component}/{path.name}"
            try:
                with safe_open(path, framework="pt") as file:
                    for key in list(file.keys()):
                        if key in seen:
                            raise DataError(f"base model: {told} has {key} a second time")
                        seen.add(key)
                        tensor = file.get_tensor(key)
                        _refuse_not_finite(tensor, told=told, key=key)
                        yield key, tensor
            except (SafetensorError, OSError, ValueError) as error:
                raise _broken(told, error) from error

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the floating point tensors have."""
        kinds: Counter[torch.dtype] = Counter()
        for path in self.paths:
            try:
                with safe_open(path, framework="pt") as file:
                    kinds.update(
                        DTYPES[kind]
                        for key in list(file.keys())
                        if (kind := file.get_slice(key).get_dtype()) in DTYPES
                    )
            except (SafetensorError, OSError, ValueError) as error:
                raise _broken(f"{self.component}/{path.name}", error) from error
        return kinds.most_common(1)[0][0] if kinds else torch.float32


def keys_of(path: Path, component: str) -> list[str]:
    """Names of the tensors in one file. Raises `DataError`."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(f"{component}/{path.name}", error) from error


def weight_files(folder: Path, component: str) -> WeightFiles:
    """The component's safetensors: in one file or several under an index, plain before fp16.

    Raises `DataError` when there are none, or the index names files that are not there.
    """
    stem = stem_of(component)
    for variant in VARIANTS:
        single = folder / component / f"{stem}{variant}.safetensors"
        if single.is_file():
            return WeightFiles(component, (single,))
        for name in (
            f"{stem}{variant}.safetensors.index.json",
            f"{stem}.safetensors.index{variant}.json",
        ):
            if (folder / component / name).is_file():
                return WeightFiles(component, _shards(folder, component, name))
    raise DataError(
        f"base model: {component}/{stem}.safetensors is missing; weights are read from safetensors"
        " only: save the pipeline with safe_serialization=True"
    )


def _shards(folder: Path, component: str, name: str) -> tuple[Path, ...]:
    table = read_json(folder, f"{component}/{name}").get("weight_map")
    if not isinstance(table, dict) or not table:
        raise DataError(f"base model: {component}/{name} has no weight_map")
    names = sorted({str(value) for value in table.values()})
    for one in names:
        if Path(one).name != one or not one.endswith(".safetensors"):
            raise DataError(
                f"base model: {component}/{name} names {one[:80]!r}, which is no safetensors file"
                " beside it"
            )
        if not (folder / component / one).is_file():
            raise DataError(
                f"base model: {component}/{one} is missing, {name} names it; upload it as well"
            )
    return tuple(folder / component / one for one in names)


def _refuse_not_finite(tensor: Tensor, *, told: str, key: str) -> None:
    # A type of 8 bits knows no such test, and becomes exact in a wider one.
    wide = tensor.to(torch.float16) if tensor.dtype.itemsize == 1 else tensor
    if wide.is_floating_point() and not torch.isfinite(wide).all():
        raise DataError(f"base model: {told} has NaN or infinite values in {key}")


def _broken(told: str, error: Exception) -> DataError:
    return DataError(
        f"base model: {told} is not a sound safetensors file ({error}); upload it again"
    )
