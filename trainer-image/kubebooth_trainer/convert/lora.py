"""Plans of low-rank updates between the names of kohya and of peft, alpha kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kubebooth_trainer.convert import lora_fusing, modelspec, tensors, views
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened, Plan, Planned, PlannedFile, Tensor
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.convert.keys.lora import Place, kohya_place
from kubebooth_trainer.convert.lora_layers import (
    ADAPTER_METADATA,
    Group,
    Layer,
    alpha_bytes,
    groups,
)
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.errors import ConfigurationError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
ALPHA_DTYPE = "kubebooth.alpha_dtype"
"""Metadata key of the dtype that alphas had in a file of kohya's."""
_MLP_RATIO = 4
"""Rows of the feed-forward layer over those of attention, in every Flux."""
_BASES: Mapping[Layout, str] = {
    "sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1",
}  # fmt: skip


def plan(opened: Opened, options: Options, found: Detected) -> Plan:
    """What a LoRA becomes. Raises `DataError` for what is none, or is not understood."""
    if options.vae is not None or options.merge_loras or options.ema == "Use":
        raise ConfigurationError(
            "vae, mergeLoras and ema change a whole pipeline, and the source is a LoRA; leave them"
            " out",
            reason="ComponentMismatch",
        )
    layout = found.layout
    read = groups(opened, layout)
    kohya = options.lora_dialect == "Kohya" and options.form != "Diffusers"
    if kohya:
        written, metadata = _kohya(read, opened, options, layout)
    else:
        written, metadata = _peft(read, options)
    kept = {k: v for k, v in opened.metadata.items()
            if k not in {ADAPTER_METADATA, ALPHA_DTYPE, "kubebooth.config"}}  # fmt: skip
    told = modelspec.written({**metadata, **kept}, options.metadata, found, name=options.name)
    suffix = "ckpt" if options.form == "Ckpt" else "safetensors"
    path = DIFFUSERS_FILE if options.form == "Diffusers" else f"{options.name}.{suffix}"
    file = PlannedFile(
        path,
        "Ckpt" if options.form == "Ckpt" else "Safetensors",
        tensors.in_order(written),
        metadata=told,
    )
    return Plan(
        family=found.family,
        variant=found.variant or "",
        prediction_type=found.prediction_type or "",
        evidence=found.evidence,
        files=(file,),
        dropped={},
    )


# --- the names of kohya


def _kohya(
    read: Iterable[Group], opened: Opened, options: Options, layout: Layout | None
) -> tuple[list[Planned], dict[str, str]]:
    by_name: dict[str, tuple[Place, dict[int, Layer]]] = {}
    written: list[Planned] = []
    layers: list[Layer] = []
    for group in read:
        if group.layer.alpha_dtype is not None and len(group.place.parts) > 1:
            # Fused in the source already: as it stands.
            written += _kohya_layer(group.place.name, group.layer, opened, options)
            layers.append(group.layer)
            continue
        for layer in lora_fusing.taken_apart(group):
            place = kohya_place(layer.folder, layer.path, layout or "sd1")
            by_name.setdefault(place.name, (place, {}))[1][place.index] = layer
    for name, (place, parts) in by_name.items():
        layer = _one(place, parts)
        layers.append(layer)
        written += _kohya_layer(name, layer, opened, options)
    return written, _kohya_metadata(layers, layout)


def _one(place: Place, parts: Mapping[int, Layer]) -> Layer:
    first = next(iter(parts.values()))
    if place.swapped:
        up = views.as_one(views.swapped_halves(first.up), first.up.shape)
        return Layer(**{**first.__dict__, "up": up})
    if len(place.parts) == 1:
        return first
    square = first.down.shape[1]
    rows = [square] * len(place.parts)
    if len(rows) == 4:
        rows[3] = square * _MLP_RATIO
    for index, layer in parts.items():
        rows[index] = layer.up.shape[0]
    return lora_fusing.fused(place, [parts.get(i) for i in range(len(rows))], rows)


def _kohya_layer(name: str, layer: Layer, opened: Opened, options: Options) -> list[Planned]:
    dtype = _dtype(layer, layer.down, options)
    asked = layer.alpha_dtype or opened.metadata.get(ALPHA_DTYPE, dtype)
    alpha_dtype, data = alpha_bytes(layer.alpha, asked)
    alpha = views.held(f"{name}.alpha", alpha_dtype, (), data)
    made = [
        _planned(f"{name}.lora_down.weight", layer.down, layer, options),
        _planned(f"{name}.lora_up.weight", _up(layer), layer, options),
        tensors.as_it_is(f"{name}.alpha", alpha, layer.origins[0]),
    ]
    if layer.magnitude is not None:
        shape = (layer.magnitude.shape[0], *(1,) * (len(layer.down.shape) - 1))
        magnitude = views.reshaped(layer.magnitude, shape)
        made.append(_planned(f"{name}.dora_scale", magnitude, layer, options))
    return made


def _kohya_metadata(layers: Iterable[Layer], layout: Layout | None) -> dict[str, str]:
    ranks = {layer.rank for layer in layers}
    alphas = {layer.alpha for layer in layers}
    told = {"ss_network_module": "networks.lora_flux" if layout == "flux" else "networks.lora"}
    if layout is not None:
        told["ss_base_model_version"] = _BASES[layout]
    if len(ranks) == 1:
        told["ss_network_dim"] = str(ranks.pop())
    if len(alphas) == 1:
        told["ss_network_alpha"] = str(alphas.pop())
    return told


# --- the names of peft


def _peft(read: Iterable[Group], options: Options) -> tuple[list[Planned], dict[str, str]]:
    written: list[Planned] = []
    layers: list[Layer] = []
    for group in read:
        for layer in lora_fusing.taken_apart(group):
            layers.append(layer)
            name = f"{layer.folder}.{layer.path}"
            written.append(_planned(f"{name}.lora_A.weight", layer.down, layer, options))
            written.append(_planned(f"{name}.lora_B.weight", _up(layer), layer, options))
            if layer.magnitude is not None:
                ones = len(layer.down.shape) - 2
                shape = (1, layer.up.shape[0], *(1,) * ones) if ones else layer.magnitude.shape
                flat = views.reshaped(layer.magnitude, shape)
                written.append(_planned(f"{name}.lora_magnitude_vector", flat, layer, options))
    told = {
        "format": "pt",
        ADAPTER_METADATA: json.dumps(_configs(layers), indent=2, sort_keys=True),
    }
    dtypes = {layer.alpha_dtype for layer in layers if layer.alpha_dtype is not None}
    if len(dtypes) == 1:
        told[ALPHA_DTYPE] = dtypes.pop()
    return written, told


def _configs(layers: Iterable[Layer]) -> dict[str, Any]:
    """Configs of peft by component, flat, as Diffusers writes them."""
    by_folder: dict[str, list[Layer]] = {}
    for layer in layers:
        by_folder.setdefault(layer.folder, []).append(layer)
    told: dict[str, Any] = {}
    for folder, found in by_folder.items():
        rank, alpha = found[0].rank, found[0].alpha
        told |= {
            f"{folder}.peft_type": "LORA",
            f"{folder}.r": rank,
            f"{folder}.lora_alpha": _plain(alpha),
            f"{folder}.target_modules": sorted(layer.path for layer in found),
            f"{folder}.use_dora": any(layer.magnitude is not None for layer in found),
            f"{folder}.rank_pattern": {
                _pattern(layer): layer.rank for layer in found if layer.rank != rank
            },
            f"{folder}.alpha_pattern": {
                _pattern(layer): _plain(layer.alpha) for layer in found if layer.alpha != alpha
            },
        }
    return told


def _pattern(layer: Layer) -> str:
    return f"^{re.escape(layer.path)}"


def _plain(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


# --- both


def _planned(name: str, tensor: Tensor, layer: Layer, options: Options) -> Planned:
    dtype = _dtype(layer, tensor, options)
    data = views.joined([tensor], dtype=dtype)
    return Planned(name, dtype, tensor.shape, data, layer.origins)


def _dtype(layer: Layer, tensor: Tensor, options: Options) -> str:
    text = layer.folder.startswith("text_encoder")
    return tensors.dtype_for(options, "TextEncoder" if text else "Denoiser", tensor.dtype)


def _up(layer: Layer) -> Tensor:
    """The up matrix with as many dimensions as the down one."""
    shape = (*layer.up.shape[:2], *(1,) * (len(layer.down.shape) - 2))
    return views.reshaped(layer.up, shape)
