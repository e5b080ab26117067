"""Reads the files of a Diffusers layout as data only: JSON and safetensors, never pickles."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kubebooth_trainer.errors import DataError

MODEL_INDEX = "model_index.json"
DENOISER = "diffusion_pytorch_model"
TRANSFORMER = "model"
STEMS = {"unet": DENOISER, "vae": DENOISER, "text_encoder": TRANSFORMER}
"""Component → stem of its weight file, as Diffusers writes it."""


@dataclass(frozen=True)
class Weights:
    """Tensors of one component as they stand in its file."""

    tensors: dict[str, Tensor]
    dtype: torch.dtype
    """The dtype most of the floating point tensors have."""


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the layout. Raises `DataError` that names the file."""
    path = folder / name
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"base model: {name} is missing; upload a complete Diffusers layout of Stable Diffusion"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"base model: {name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"base model: {name} should hold a JSON object")
    return value


def weight_file(folder: Path, component: str) -> Path:
    """The component's safetensors file; a plain name is preferred to the fp16 variant."""
    stem = STEMS[component]
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / component / name).is_file():
            return folder / component / name
    raise DataError(
        f"base model: {component}/{stem}.safetensors is missing; weights are read from safetensors"
        " only: save the pipeline with safe_serialization=True"
    )


def read_weights(folder: Path, component: str) -> Weights:
    """Every tensor of a component. Raises `DataError` for a broken file or NaN weights."""
    path = weight_file(folder, component)
    name = f"{component}/{path.name}"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"base model: {name} is not a sound safetensors file ({error}); upload it again"
        ) from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"base model: {name} has NaN or infinite values in {key}")
    kinds = Counter(t.dtype for t in tensors.values() if t.is_floating_point())
    dtype = kinds.most_common(1)[0][0] if kinds else torch.float32
    return Weights(tensors, dtype)
