"""Names of a low-rank update in files: those of diffusers, and those that web UIs read.

Pure: it knows names and tensors, and must not know models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kubebooth_trainer.convert.keys import clip, flux, unet
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.convert.keys.links import Link
from kubebooth_trainer.convert.keys.lora import kohya_place
from kubebooth_trainer.convert.keys.sizes import Config
from kubebooth_trainer.train.lora import Layer

Family = Literal["sd", "sdxl", "flux"]
DENOISERS: Mapping[Family, str] = {"sd": "unet", "sdxl": "unet", "flux": "transformer"}
"""Family → component of the Diffusers layout."""


def diffusers_names(layers: Sequence[Layer], *, family: Family) -> dict[str, Tensor]:
    """Tensors by the names of peft, with the component before them.

    The scale is in the tensors themselves, as if alpha were the rank: these names have no place
    for it, and readers that know no metadata would take the rank.
    """
    found: dict[str, Tensor] = {}
    for layer in layers:
        name = f"{_folder(layer, family)}.{_path(layer)}"
        scale = layer.alpha / layer.rank
        found[f"{name}.lora_A.weight"] = layer.down
        found[f"{name}.lora_B.weight"] = layer.up if scale == 1 else layer.up * scale
        if layer.magnitude is not None:
            magnitude = layer.magnitude
            shape = (1, -1, 1, 1) if layer.down.dim() == 4 else (-1,)
            found[f"{name}.lora_magnitude_vector.weight"] = magnitude.reshape(shape)
    return found


def kohya_names(
    layers: Sequence[Layer], *, family: Family, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Tensors by the names of kohya's scripts; `config` is that of the denoiser.

    Stable Diffusion 1 and 2 have the paths of diffusers in them, SDXL and Flux those of their
    original code, with layers joined as they are there.
    """
    found: dict[str, Tensor] = {}
    for name, layer in _renamed(layers, family=family, config=config):
        found[f"{name}.lora_down.weight"] = layer.down
        found[f"{name}.lora_up.weight"] = layer.up
        found[f"{name}.alpha"] = torch.tensor(layer.alpha)
        if layer.magnitude is not None:
            edges = (1,) * (layer.down.dim() - 1)
            found[f"{name}.dora_scale"] = layer.magnitude.reshape(-1, *edges)
    return found


def _folder(layer: Layer, family: Family) -> str:
    return DENOISERS[family] if layer.part == "denoiser" else "text_encoder"


def _path(layer: Layer) -> str:
    """Text encoders have `text_model` in files, whatever the library at hand calls it."""
    return clip.prefixed(layer.path) if layer.part == "textEncoder" else layer.path


def _renamed(
    layers: Sequence[Layer], *, family: Family, config: Mapping[str, Any]
) -> list[tuple[str, Layer]]:
    layout: Layout = "sd1" if family == "sd" else family
    by_path = [one for one in layers if one.part == "textEncoder" or family == "sd"]
    found = [(kohya_place(_folder(one, family), one.path, layout).name, one) for one in by_path]
    own = {one.path: one for one in layers if one.part == "denoiser" and family != "sd"}
    for link in _links(family, config) if own else ():
        if not link.single.endswith(".weight"):
            continue
        joined = _joined(link, own)
        if joined is not None:
            path = link.single.removesuffix(".weight")
            found.append((f"lora_unet_{path.replace('.', '_')}", joined))
    return found


def _links(family: Family, config: Mapping[str, Any]) -> list[Link]:
    # Configs of loaded models have tuples where JSON has lists.
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}
    read = Config(values, file="config.json of the denoiser")
    if family == "flux":
        return flux.links(flux.from_config(read))
    return unet.links(unet.from_config(read))


@dataclass(frozen=True)
class _Rows:
    layer: Layer | None
    count: int


def _joined(link: Link, own: Mapping[str, Layer]) -> Layer | None:
    """The update of one tensor of the single file; None when no part of it has one."""
    rows = [_Rows(own.get(part.name.removesuffix(".weight")), part.shape[0]) for part in link.parts]
    there = [one.layer for one in rows if one.layer is not None]
    if not there:
        return None
    if len(rows) == 1:
        return there[0]
    ranks = [layer.rank for layer in there]
    up = torch.zeros(sum(one.count for one in rows), sum(ranks))
    row = column = 0
    for one in rows:
        if one.layer is not None:
            width = one.layer.rank
            up[row : row + one.count, column : column + width] = one.layer.up.cpu()
            column += width
        row += one.count
    magnitude = None
    if all(one.layer and one.layer.magnitude is not None for one in rows):
        magnitude = torch.cat(
            [layer.magnitude.cpu() for layer in there if layer.magnitude is not None]
        )
    return replace(
        there[0],
        path=link.single,
        down=torch.cat([layer.down.cpu() for layer in there]),
        up=up,
        # The scale is alpha / rank, and the rank has grown.
        alpha=there[0].alpha * sum(ranks) / there[0].rank,
        magnitude=magnitude,
    )
