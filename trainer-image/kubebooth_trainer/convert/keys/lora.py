"""Names of low-rank updates: module paths of the Diffusers layout, and the names of kohya's files.

`kohya_place` answers the one way, `diffusers_place` the other. Flux is fused in kohya's files: one
update stands for query, key and value. Standard library only; every user interface reads the names
written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from kubebooth_trainer.convert.keys import flux, unet
from kubebooth_trainer.convert.keys.clip import prefixed
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.convert.keys.links import Link

DENOISERS = ("unet", "transformer")
_HEADS: Mapping[str, str] = {
    "lora_unet_": "denoiser",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_2",
}
"""Prefix of kohya → part; the T5 of Flux is the third, SDXL's second encoder the second."""
_WORDS = (
    "single_transformer_blocks", "transformer_blocks", "down_blocks", "up_blocks", "mid_block",
    "time_text_embed", "timestep_embedder", "guidance_embedder", "text_embedder", "x_embedder",
    "context_embedder", "time_embedding", "add_embedding", "time_emb_proj", "conv_shortcut",
    "norm1_context", "norm_out", "ff_context", "add_q_proj", "add_k_proj", "add_v_proj",
    "to_add_out", "to_out", "to_q", "to_k", "to_v", "proj_in", "proj_out", "proj_mlp", "conv_in",
    "conv_out", "linear_1", "linear_2", "text_model", "self_attn", "q_proj", "k_proj", "v_proj",
    "out_proj", "wi_0", "wi_1", "final_layer_norm", "token_embedding", "position_embedding",
    "layer_norm", "text_projection", "controlnet_cond_embedding",
)  # fmt: skip
"""Names of modules that have a `_` of their own."""
_TOKEN = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)) + r"|[A-Za-z0-9]+")


@dataclass(frozen=True)
class Place:
    """Where the update of a module stands in kohya's files."""

    name: str
    """Without suffix, such as `lora_unet_double_blocks_0_img_attn_qkv`."""
    index: int = 0
    """Which of `parts` it is."""
    parts: tuple[str, ...] = ()
    """Paths of all modules that share the name, in the order of their rows; more than one where
    kohya's files fuse them."""
    swapped: bool = False
    """Whether the halves of the rows stand the other way round."""


def kohya_place(folder: str, path: str, layout: Layout) -> Place:
    """The place of a module: `folder` is `unet`, `transformer`, `text_encoder` or
    `text_encoder_2`, `path` the module's path in it, such as
    `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.

    Pure, and without torch, so that a trainer may name what it writes by it. Where `parts` has
    more than one, the updates of all of them make one: down matrices one below another, up
    matrices along a diagonal, alpha times the number of ranks over each one's own.
    """
    if folder in DENOISERS:
        if layout == "flux" and (fused := _flux_place(path)) is not None:
            return fused
        return Place(f"lora_unet_{path.replace('.', '_')}", parts=(path,))
    if folder == "text_encoder_2":
        head = "lora_te3" if layout == "flux" else "lora_te2"
    else:
        head = "lora_te" if layout in {"sd1", "sd2"} else "lora_te1"
    path = path if layout == "flux" and folder == "text_encoder_2" else prefixed(path)
    return Place(f"{head}_{path.replace('.', '_')}", parts=(path,))


def diffusers_place(
    name: str, layout: Layout | None, ldm: Mapping[str, str] | None = None
) -> tuple[str, Place] | None:
    """Part (`denoiser`, `text_encoder`, `text_encoder_2`) and place of a name of kohya's files,
    without suffix; None for a name that is not of them.

    SDXL's files may have the names of the single file. `ldm` are those of the very model, see
    `ldm_modules`; without it the published UNet of the layout is taken.
    """
    head = next((h for h in _HEADS if name.startswith(h)), None)
    if head is None:
        return None
    part, rest = _HEADS[head], name.removeprefix(head)
    if part != "denoiser":
        path = _dotted(rest)
        if path is None:
            return None
        path = path if path.startswith("encoder.block.") else prefixed(path)
        return part, Place(name, parts=(path,))
    if rest.startswith(("double_blocks_", "single_blocks_")) or rest in _flux_others():
        place = _flux_fused(rest)
        return None if place is None else (part, place)
    if rest.startswith(("input_blocks_", "middle_block_", "output_blocks_", "label_emb_")):
        path = (_published(layout or "sdxl") if ldm is None else ldm).get(rest)
    else:
        path = _dotted(rest)
    return None if path is None else (part, Place(name, parts=(path,)))


def _dotted(name: str) -> str | None:
    """`attn1_to_out_0` → `attn1.to_out.0`; None for what is no name."""
    found: list[str] = []
    at = 0
    while (match := _TOKEN.match(name, at)) is not None:
        found.append(match[0])
        at = match.end()
        if at == len(name):
            return ".".join(found)
        if name[at] != "_":
            return None
        at += 1
    return None


# --- Flux


@cache
def _flux_modules() -> dict[str, tuple[str, tuple[str, ...], bool]]:
    """Diffusers module of block 0, or outside of blocks → module of the single file, all modules
    that share it, and whether its halves are swapped."""
    sizes = flux.FluxSizes(
        width=8, head=4, inner=32, double=1, single=1, in_channels=4, out_channels=4,
        text_width=8, pooled_width=8, guidance=True,
    )  # fmt: skip
    found = {}
    for link in flux.links(sizes):
        if link.single.endswith(".weight") and len(link.shape) == 2:
            parts = tuple(part.name.removesuffix(".weight") for part in link.parts)
            for part in parts:
                single = link.single.removesuffix(".weight")
                found[part] = (single, parts, link.how == "Swap")
    return found


_BLOCK = re.compile(r"((?:single_)?transformer_blocks)\.(\d{1,4})\.(.+)")
_FUSED = re.compile(r"((?:double|single)_blocks)_(\d{1,4})_(.+)")


def _flux_place(path: str) -> Place | None:
    block = _BLOCK.fullmatch(path)
    first = f"{block[1]}.0.{block[3]}" if block else path
    known = _flux_modules().get(first)
    if known is None:
        return None
    single, parts, swapped = known
    if block:
        single = single.replace("_blocks.0.", f"_blocks.{block[2]}.", 1)
        parts = tuple(part.replace("_blocks.0.", f"_blocks.{block[2]}.", 1) for part in parts)
    return Place(f"lora_unet_{single.replace('.', '_')}", parts.index(path), parts, swapped)


@cache
def _flux_underscored() -> dict[str, str]:
    """Module of the single file with underscores → the first Diffusers module that it holds."""
    return {
        single.replace(".", "_"): parts[0] for single, parts, _swapped in _flux_modules().values()
    }


def _flux_others() -> frozenset[str]:
    return frozenset(n for n in _flux_underscored() if not n.startswith(("double", "single")))


def _flux_fused(rest: str) -> Place | None:
    block = _FUSED.fullmatch(rest)
    first = f"{block[1]}_0_{block[3]}" if block else rest
    path = _flux_underscored().get(first)
    if path is None:
        return None
    if block:
        path = path.replace("_blocks.0.", f"_blocks.{int(block[2])}.", 1)
    place = _flux_place(path)
    return None if place is None else Place(place.name, 0, place.parts, place.swapped)


# --- names of LDM in kohya's files, as older SDXL updates have them


def ldm_modules(links: Iterable[Link]) -> dict[str, str]:
    """Module of the single file with underscores → Diffusers module, of a UNet's table."""
    return {
        link.single.rpartition(".")[0].replace(".", "_"): link.parts[0].name.rpartition(".")[0]
        for link in links
    }


@cache
def _published(layout: Layout) -> dict[str, str]:
    """`ldm_modules` of the UNet that the family was published with."""
    large = layout == "sdxl"
    sizes = unet.UNetSizes(
        channels=(320, 640, 1280) if large else (320, 640, 1280, 1280),
        layers=2,
        down_depths=(0, 2, 10) if large else (1, 1, 1, 0),
        up_depths=(10, 2, 0) if large else (0, 1, 1, 1),
        mid_depth=10 if large else 1,
        text_width=2048 if large else 768,
        in_channels=4,
        out_channels=4,
        linear=layout != "sd1",
        added=2816 if large else None,
    )
    return ldm_modules(unet.links(sizes))
