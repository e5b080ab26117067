"""The T5 encoder of Flux: both sides have the same names, single files under
`text_encoders.t5xxl.transformer.`."""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Config, Found

TIED = "encoder.embed_tokens.weight"
"""A second name of `shared.weight`, which some files have."""


@dataclass(frozen=True)
class T5Sizes:
    """All that decides names and shapes of a T5 encoder with gated feed-forward layers."""

    width: int
    attention: int
    """Width of all heads together."""
    heads: int
    inner: int
    layers: int
    words: int
    buckets: int
    """Relative distances that attention tells apart."""


def from_config(config: Config) -> T5Sizes:
    """Sizes of a `T5EncoderModel`. Raises `DataError` that names the field."""
    if config.values.get("feed_forward_proj", "gated-gelu") != "gated-gelu":
        raise config.wrong("feed_forward_proj")
    heads = config.count("num_heads", 64)
    return T5Sizes(
        width=config.count("d_model", 4096),
        attention=heads * config.count("d_kv", 64),
        heads=heads,
        inner=config.count("d_ff", 10240),
        layers=config.count("num_layers", 24, most=MOST_LAYERS),
        words=config.count("vocab_size", 32128),
        buckets=config.count("relative_attention_num_buckets", 32),
    )


def from_single(found: Found) -> T5Sizes:
    """Sizes read from names and shapes. Raises `DataError`."""
    words, width = found.shape("shared.weight", 2)
    first = "encoder.block.0.layer"
    buckets, heads = found.shape(f"{first}.0.SelfAttention.relative_attention_bias.weight", 2)
    return T5Sizes(
        width=width,
        attention=found.shape(f"{first}.0.SelfAttention.q.weight", 2)[0],
        heads=heads,
        inner=found.shape(f"{first}.1.DenseReluDense.wo.weight", 2)[1],
        layers=found.number(r"encoder\.block\.(\d+)\.", most=MOST_LAYERS),
        words=words,
        buckets=buckets,
    )


def links(sizes: T5Sizes) -> list[Link]:
    """Every tensor of an encoder, without prefix."""
    table = Table()

    def matrix(name: str, rows: int, columns: int) -> None:
        table.same(f"{name}.weight", f"{name}.weight", rows, columns)

    def scale(name: str) -> None:
        table.same(f"{name}.weight", f"{name}.weight", sizes.width)

    matrix("shared", sizes.words, sizes.width)
    for i in range(sizes.layers):
        at = f"encoder.block.{i}.layer"
        for name in "qkv":
            matrix(f"{at}.0.SelfAttention.{name}", sizes.attention, sizes.width)
        matrix(f"{at}.0.SelfAttention.o", sizes.width, sizes.attention)
        if i == 0:
            bias = f"{at}.0.SelfAttention.relative_attention_bias"
            matrix(bias, sizes.buckets, sizes.heads)
        scale(f"{at}.0.layer_norm")
        for name in ("wi_0", "wi_1"):
            matrix(f"{at}.1.DenseReluDense.{name}", sizes.inner, sizes.width)
        matrix(f"{at}.1.DenseReluDense.wo", sizes.width, sizes.inner)
        scale(f"{at}.1.layer_norm")
    scale("encoder.final_layer_norm")
    return table.links
