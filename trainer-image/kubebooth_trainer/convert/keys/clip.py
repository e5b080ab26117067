"""CLIP-L as a text encoder, of SD1, SDXL and Flux: both sides have the same names.

The layout of transformers has `text_model.` before every name or, if a model was built by a later
version, not; single files have it always. What is written here has it on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Config, Found

PREFIX = "text_model."
BUFFERS = ("text_model.embeddings.position_ids",)
"""Counters that every reader makes anew; half-precision files even have them as floats."""


@dataclass(frozen=True)
class ClipSizes:
    """All that decides names and shapes of a CLIP text encoder."""

    width: int
    inner: int
    """Width of the feed-forward layers."""
    layers: int
    words: int
    """Entries of the vocabulary."""
    positions: int
    projection: int | None = None
    """Width of the projected pooled embedding, if it has one."""


def from_config(config: Config, *, projection: bool = False) -> ClipSizes:
    """Sizes of a `CLIPTextModel`, or of one with projection. Raises `DataError`."""
    width = config.count("hidden_size", 512)
    return ClipSizes(
        width=width,
        inner=config.count("intermediate_size", 2048),
        layers=config.count("num_hidden_layers", 12, most=MOST_LAYERS),
        words=config.count("vocab_size", 49408),
        positions=config.count("max_position_embeddings", 77),
        projection=config.count("projection_dim", 512) if projection else None,
    )


def from_single(found: Found) -> ClipSizes:
    """Sizes read from names with `text_model.` and their shapes. Raises `DataError`."""
    words, width = found.shape("text_model.embeddings.token_embedding.weight", 2)
    return ClipSizes(
        width=width,
        inner=found.shape("text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=found.number(r"text_model\.encoder\.layers\.(\d+)\.", most=MOST_LAYERS),
        words=words,
        positions=found.shape("text_model.embeddings.position_embedding.weight", 2)[0],
    )


def prefixed(name: str) -> str:
    """A name of the Diffusers layout with `text_model.` before it."""
    plain = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"{PREFIX}{name}" if plain else name


def links(sizes: ClipSizes) -> list[Link]:
    """Every tensor of a text encoder, `text_model.` included."""
    table = Table()
    at = "text_model.embeddings"
    for name, rows in (("token_embedding", sizes.words), ("position_embedding", sizes.positions)):
        table.same(f"{at}.{name}.weight", f"{at}.{name}.weight", rows, sizes.width)
    for i in range(sizes.layers):
        at = f"text_model.encoder.layers.{i}"
        for name in ("layer_norm1", "layer_norm2"):
            table.norm(f"{at}.{name}", f"{at}.{name}", width=sizes.width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = f"{at}.self_attn.{name}"
            table.linear(name, name, rows=sizes.width, columns=sizes.width)
        table.linear(f"{at}.mlp.fc1", f"{at}.mlp.fc1", rows=sizes.inner, columns=sizes.width)
        table.linear(f"{at}.mlp.fc2", f"{at}.mlp.fc2", rows=sizes.width, columns=sizes.inner)
    table.norm("text_model.final_layer_norm", "text_model.final_layer_norm", width=sizes.width)
    return table.links
