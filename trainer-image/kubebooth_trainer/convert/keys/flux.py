"""The transformer of Flux.1 dev and schnell: Diffusers names and those of its makers.

Single-file prefix `model.diffusion_model.`, or none. Query, key and value are one tensor in the
single file (in single blocks with the first feed-forward layer), and the last modulation has scale
and shift the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Config, Found


@dataclass(frozen=True)
class FluxSizes:
    """All that decides names and shapes of a transformer."""

    width: int
    head: int
    """Width of one attention head."""
    inner: int
    """Width of the feed-forward layers."""
    double: int
    """Blocks that keep picture and text apart."""
    single: int
    """Blocks that do not."""
    in_channels: int
    out_channels: int
    text_width: int
    pooled_width: int
    guidance: bool
    """Whether guidance is embedded: dev, not schnell."""
    embedded: int = 256
    """Width of the sinusoids of timestep and guidance."""


def from_config(config: Config) -> FluxSizes:
    """Sizes of a `FluxTransformer2DModel`. Raises `DataError` that names the field."""
    head = config.count("attention_head_dim", 128)
    width = head * config.count("num_attention_heads", 24)
    channels = config.count("in_channels", 64)
    return FluxSizes(
        width=width,
        head=head,
        inner=4 * width,
        double=config.count("num_layers", 19, most=MOST_LAYERS),
        single=config.count("num_single_layers", 38, most=MOST_LAYERS),
        in_channels=channels,
        out_channels=config.optional("out_channels") or channels,
        text_width=config.count("joint_attention_dim", 4096),
        pooled_width=config.count("pooled_projection_dim", 768),
        guidance=config.truth("guidance_embeds", False),
    )


def from_single(found: Found) -> FluxSizes:
    """Sizes read from the names and shapes of a single file. Raises `DataError`."""
    width, channels = found.shape("img_in.weight", 2)
    return FluxSizes(
        width=width,
        head=found.shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0],
        inner=found.shape("double_blocks.0.img_mlp.0.weight", 2)[0],
        double=found.number(r"double_blocks\.(\d+)\.", most=MOST_LAYERS),
        single=found.number(r"single_blocks\.(\d+)\.", most=MOST_LAYERS),
        in_channels=channels,
        out_channels=found.shape("final_layer.linear.weight", 2)[0],
        text_width=found.shape("txt_in.weight", 2)[1],
        pooled_width=found.shape("vector_in.in_layer.weight", 2)[1],
        guidance="guidance_in.in_layer.weight" in found,
        embedded=found.shape("time_in.in_layer.weight", 2)[1],
    )


def links(sizes: FluxSizes) -> list[Link]:
    """Every tensor of a transformer, without prefix."""
    table, wide = Table(), sizes.width
    table.linear("x_embedder", "img_in", rows=wide, columns=sizes.in_channels)
    table.linear("context_embedder", "txt_in", rows=wide, columns=sizes.text_width)
    for name, s, columns in (
        ("timestep", "time_in", sizes.embedded),
        ("text", "vector_in", sizes.pooled_width),
        ("guidance", "guidance_in", sizes.embedded),
    ):
        if name == "guidance" and not sizes.guidance:
            continue
        d = f"time_text_embed.{name}_embedder"
        table.linear(f"{d}.linear_1", f"{s}.in_layer", rows=wide, columns=columns)
        table.linear(f"{d}.linear_2", f"{s}.out_layer", rows=wide, columns=wide)
    for i in range(sizes.double):
        _double(table, f"transformer_blocks.{i}", f"double_blocks.{i}", sizes)
    for i in range(sizes.single):
        _single(table, f"single_transformer_blocks.{i}", f"single_blocks.{i}", sizes)
    table.swap("norm_out.linear", "final_layer.adaLN_modulation.1", rows=2 * wide, columns=wide)
    table.linear("proj_out", "final_layer.linear", rows=sizes.out_channels, columns=wide)
    return table.links


def _double(table: Table, d: str, s: str, sizes: FluxSizes) -> None:
    wide, inner = sizes.width, sizes.inner
    for norm, mod in (("norm1", "img_mod"), ("norm1_context", "txt_mod")):
        table.linear(f"{d}.{norm}.linear", f"{s}.{mod}.lin", rows=6 * wide, columns=wide)
    for side, names, query, key, out in (
        ("img", ("to_q", "to_k", "to_v"), "norm_q", "norm_k", "to_out.0"),
        ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_q", "norm_added_k",
         "to_add_out"),
    ):  # fmt: skip
        at = f"{s}.{side}_attn"
        for leaf, columns in (("weight", wide), ("bias", None)):
            joined = [(f"{d}.attn.{name}.{leaf}", wide) for name in names]
            table.join(joined, f"{at}.qkv.{leaf}", columns=columns)
        table.same(f"{d}.attn.{query}.weight", f"{at}.norm.query_norm.scale", sizes.head)
        table.same(f"{d}.attn.{key}.weight", f"{at}.norm.key_norm.scale", sizes.head)
        table.linear(f"{d}.attn.{out}", f"{at}.proj", rows=wide, columns=wide)
    for net, mlp in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        table.linear(f"{d}.{net}.net.0.proj", f"{s}.{mlp}.0", rows=inner, columns=wide)
        table.linear(f"{d}.{net}.net.2", f"{s}.{mlp}.2", rows=wide, columns=inner)


def _single(table: Table, d: str, s: str, sizes: FluxSizes) -> None:
    wide, inner = sizes.width, sizes.inner
    table.linear(f"{d}.norm.linear", f"{s}.modulation.lin", rows=3 * wide, columns=wide)
    for leaf, columns in (("weight", wide), ("bias", None)):
        joined = [(f"{d}.attn.{name}.{leaf}", wide) for name in ("to_q", "to_k", "to_v")]
        joined.append((f"{d}.proj_mlp.{leaf}", inner))
        table.join(joined, f"{s}.linear1.{leaf}", columns=columns)
    table.linear(f"{d}.proj_out", f"{s}.linear2", rows=wide, columns=wide + inner)
    table.same(f"{d}.attn.norm_q.weight", f"{s}.norm.query_norm.scale", sizes.head)
    table.same(f"{d}.attn.norm_k.weight", f"{s}.norm.key_norm.scale", sizes.head)
