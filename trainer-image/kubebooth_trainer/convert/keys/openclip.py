"""OpenCLIP as a text encoder, of SD2 (ViT-H) and SDXL (ViT-bigG).

Query, key and value are one tensor in the single file; the projection of SDXL is transposed there.
SD2 files have one layer more than the Diffusers layout keeps: the text is read before it.
"""

from __future__ import annotations

from kubebooth_trainer.convert.keys.clip import ClipSizes
from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Found

VIT_H_LAYERS = 24


def from_single(found: Found, *, projection: bool) -> ClipSizes:
    """Sizes read from names and shapes; without `projection` (SD2) a last layer that the
    Diffusers layout does not have is left out. Raises `DataError`.
    """
    words, width = found.shape("token_embedding.weight", 2)
    layers = found.number(r"transformer\.resblocks\.(\d+)\.", most=MOST_LAYERS)
    return ClipSizes(
        width=width,
        inner=found.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=layers if projection else _kept(layers, whole="text_projection" in found),
        words=words,
        positions=found.shape("positional_embedding", 2)[0],
        projection=found.shape("text_projection", 2)[1] if projection else None,
    )


def _kept(layers: int, *, whole: bool) -> int:
    """Layers of ViT-H that are read: 23 of 24. Files made from a Diffusers layout have the 23
    only; smaller models are `whole` if they still have the projection that nobody reads."""
    if layers >= VIT_H_LAYERS - 1:
        return VIT_H_LAYERS - 1
    return layers - 1 if whole else layers


def links(sizes: ClipSizes) -> list[Link]:
    """Every tensor of a text encoder, without prefix."""
    table, wide = Table(), sizes.width
    at = "text_model.embeddings"
    table.same(f"{at}.position_embedding.weight", "positional_embedding", sizes.positions, wide)
    table.same(f"{at}.token_embedding.weight", "token_embedding.weight", sizes.words, wide)
    for i in range(sizes.layers):
        d, s = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        table.norm(f"{d}.layer_norm1", f"{s}.ln_1", width=wide)
        table.norm(f"{d}.layer_norm2", f"{s}.ln_2", width=wide)
        for leaf, columns in (("weight", wide), ("bias", None)):
            names = [(f"{d}.self_attn.{name}_proj.{leaf}", wide) for name in "qkv"]
            table.join(names, f"{s}.attn.in_proj_{leaf}", columns=columns)
        table.linear(f"{d}.self_attn.out_proj", f"{s}.attn.out_proj", rows=wide, columns=wide)
        table.linear(f"{d}.mlp.fc1", f"{s}.mlp.c_fc", rows=sizes.inner, columns=wide)
        table.linear(f"{d}.mlp.fc2", f"{s}.mlp.c_proj", rows=wide, columns=sizes.inner)
    table.norm("text_model.final_layer_norm", "ln_final", width=wide)
    if sizes.projection is not None:
        table.transpose(
            "text_projection.weight", "text_projection", rows=sizes.projection, columns=wide
        )
    return table.links
