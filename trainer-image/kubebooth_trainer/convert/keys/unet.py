"""UNets of Stable Diffusion 1, 2 and XL: Diffusers names and those of LDM and SGM.

Single-file prefix `model.diffusion_model.`; no data changes, only names do.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Config, Found

ATTENTION_DOWN = "CrossAttnDownBlock2D"
ATTENTION_UP = "CrossAttnUpBlock2D"
PLAIN_DOWN = "DownBlock2D"
PLAIN_UP = "UpBlock2D"


@dataclass(frozen=True)
class UNetSizes:
    """All that decides names and shapes of a UNet."""

    channels: tuple[int, ...]
    """Width of each block, from the finest on."""
    layers: int
    """Residual blocks of a down block; up blocks have one more."""
    down_depths: tuple[int, ...]
    """Transformer blocks in each attention of a down block; 0 where there is none."""
    up_depths: tuple[int, ...]
    mid_depth: int
    text_width: int
    in_channels: int
    out_channels: int
    linear: bool
    """Whether attention projects by linear layers; else by 1x1 convolutions."""
    added: int | None = None
    """Width of the added conditioning (SDXL), if any."""

    @property
    def time_width(self) -> int:
        """Width of the embedded timestep."""
        return 4 * self.channels[0]


def from_config(config: Config) -> UNetSizes:
    """Sizes of a `UNet2DConditionModel`. Raises `DataError` that names the field."""
    channels = config.counts("block_out_channels")
    down, up = config.words("down_block_types"), config.words("up_block_types")
    depths = config.each(
        "transformer_layers_per_block", blocks=len(channels), default=1, most=MOST_LAYERS
    )
    known = {ATTENTION_DOWN, PLAIN_DOWN}, {ATTENTION_UP, PLAIN_UP}
    for name, types, allowed in (("down", down, known[0]), ("up", up, known[1])):
        if len(types) != len(channels) or not set(types) <= allowed:
            raise config.wrong(f"{name}_block_types")
    if config.values.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        raise config.wrong("mid_block_type")
    added = None
    if config.values.get("addition_embed_type") is not None:
        added = config.count("projection_class_embeddings_input_dim")
    return UNetSizes(
        channels=channels,
        layers=config.count("layers_per_block", 2, most=MOST_LAYERS),
        down_depths=tuple(
            d if kind == ATTENTION_DOWN else 0 for d, kind in zip(depths, down, strict=True)
        ),
        up_depths=tuple(
            d if kind == ATTENTION_UP else 0 for d, kind in zip(depths[::-1], up, strict=True)
        ),
        mid_depth=depths[-1],
        text_width=config.count("cross_attention_dim", 1280),
        in_channels=config.count("in_channels", 4),
        out_channels=config.count("out_channels", 4),
        linear=config.truth("use_linear_projection", False),
        added=added,
    )


def from_single(found: Found) -> UNetSizes:
    """Sizes read from the names and shapes of a single file. Raises `DataError`."""
    sizes = down_from_single(found)
    count = len(sizes.channels)
    up = tuple(
        found.number(
            rf"output_blocks\.{i * (sizes.layers + 1)}\.1\.transformer_blocks\.(\d+)\.",
            most=MOST_LAYERS,
        )
        for i in range(count)
    )
    out = found.shape("out.2.weight", 4)[0]
    return UNetSizes(**{**sizes.__dict__, "up_depths": up, "out_channels": out})


def down_from_single(found: Found) -> UNetSizes:
    """Sizes of the descending half, which ControlNets have too."""
    count, layers = _blocks(found)
    step = layers + 1
    depths = tuple(
        found.number(rf"input_blocks\.{i * step + 1}\.1\.transformer_blocks\.(\d+)\.", most=128)
        for i in range(count)
    )
    channels = tuple(
        found.shape(f"input_blocks.{i * step + 1}.0.out_layers.3.weight", 4)[0]
        for i in range(count)
    )
    inner = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    added = None
    if "label_emb.0.0.weight" in found:
        added = found.shape("label_emb.0.0.weight", 2)[1]
    return UNetSizes(
        channels=channels,
        layers=layers,
        down_depths=depths,
        up_depths=depths[::-1],
        mid_depth=found.number(r"middle_block\.1\.transformer_blocks\.(\d+)\.", most=MOST_LAYERS),
        text_width=found.shape(inner, 2)[1],
        in_channels=found.shape("input_blocks.0.0.weight", 4)[1],
        out_channels=4,
        linear=len(found.shapes.get("middle_block.1.proj_in.weight", ())) == 2,
        added=added,
    )


def _blocks(found: Found) -> tuple[int, int]:
    """Number of down blocks and of layers in each."""
    inputs = found.number(r"input_blocks\.(\d+)\.", most=MOST_LAYERS)
    downs = [k for k in range(inputs) if f"input_blocks.{k}.0.op.weight" in found]
    layers = downs[0] - 1 if downs else inputs - 1
    count = len(downs) + 1
    even = downs == [(i + 1) * (layers + 1) for i in range(count - 1)]
    if layers < 1 or not even or inputs != count * (layers + 1):
        # Names the tensor that an even network would have had.
        found.shape(f"input_blocks.{max(inputs, 1) * 2}.0.op.weight", 4)
    return count, layers


def links(sizes: UNetSizes) -> list[Link]:
    """Every tensor of a UNet, without prefix."""
    table = Table()
    skips = add_down(table, sizes)
    add_middle(table, sizes)
    step, last = sizes.layers + 1, len(sizes.channels) - 1
    width = sizes.channels[-1]
    for i, (wide, depth) in enumerate(zip(sizes.channels[::-1], sizes.up_depths, strict=True)):
        for j in range(step):
            d, s = f"up_blocks.{i}", f"output_blocks.{i * step + j}"
            add_resnet(
                table, f"{d}.resnets.{j}", f"{s}.0",
                inputs=width + skips.pop(), width=wide, time=sizes.time_width,
            )  # fmt: skip
            width = wide
            if depth:
                add_attention(table, f"{d}.attentions.{j}", f"{s}.1", wide, depth, sizes)
        if i < last:
            up = f"output_blocks.{i * step + sizes.layers}.{2 if depth else 1}.conv"
            table.conv(f"up_blocks.{i}.upsamplers.0.conv", up, rows=wide, columns=wide)
    first = sizes.channels[0]
    table.norm("conv_norm_out", "out.0", width=first)
    table.conv("conv_out", "out.2", rows=sizes.out_channels, columns=first)
    return table.links


def add_down(table: Table, sizes: UNetSizes) -> list[int]:
    """Entry, embeddings and descending half; widths of the skip connections."""
    first, time = sizes.channels[0], sizes.time_width
    table.conv("conv_in", "input_blocks.0.0", rows=first, columns=sizes.in_channels)
    table.linear("time_embedding.linear_1", "time_embed.0", rows=time, columns=first)
    table.linear("time_embedding.linear_2", "time_embed.2", rows=time, columns=time)
    if sizes.added is not None:
        table.linear("add_embedding.linear_1", "label_emb.0.0", rows=time, columns=sizes.added)
        table.linear("add_embedding.linear_2", "label_emb.0.2", rows=time, columns=time)
    step, width, skips = sizes.layers + 1, first, [first]
    for i, (wide, depth) in enumerate(zip(sizes.channels, sizes.down_depths, strict=True)):
        for j in range(sizes.layers):
            d, s = f"down_blocks.{i}", f"input_blocks.{i * step + j + 1}"
            add_resnet(table, f"{d}.resnets.{j}", f"{s}.0", inputs=width, width=wide, time=time)
            width = wide
            skips.append(wide)
            if depth:
                add_attention(table, f"{d}.attentions.{j}", f"{s}.1", wide, depth, sizes)
        if i < len(sizes.channels) - 1:
            d, s = f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{(i + 1) * step}.0.op"
            table.conv(d, s, rows=wide, columns=wide)
            skips.append(wide)
    return skips


def add_middle(table: Table, sizes: UNetSizes) -> None:
    """The middle block."""
    wide, time = sizes.channels[-1], sizes.time_width
    for d, s in (("resnets.0", "0"), ("resnets.1", "2")):
        add_resnet(table, f"mid_block.{d}", f"middle_block.{s}", inputs=wide, width=wide, time=time)
    add_attention(
        table, "mid_block.attentions.0", "middle_block.1", wide, sizes.mid_depth, sizes
    )  # fmt: skip


def add_resnet(table: Table, d: str, s: str, *, inputs: int, width: int, time: int) -> None:
    """A residual block that reads the timestep."""
    table.norm(f"{d}.norm1", f"{s}.in_layers.0", width=inputs)
    table.conv(f"{d}.conv1", f"{s}.in_layers.2", rows=width, columns=inputs)
    table.linear(f"{d}.time_emb_proj", f"{s}.emb_layers.1", rows=width, columns=time)
    table.norm(f"{d}.norm2", f"{s}.out_layers.0", width=width)
    table.conv(f"{d}.conv2", f"{s}.out_layers.3", rows=width, columns=width)
    if inputs != width:
        shortcut = f"{d}.conv_shortcut", f"{s}.skip_connection"
        table.conv(*shortcut, rows=width, columns=inputs, edge=1)


def add_attention(table: Table, d: str, s: str, width: int, depth: int, sizes: UNetSizes) -> None:
    """Attention to the picture and the text; inside, both sides have the same names."""
    table.norm(f"{d}.norm", f"{s}.norm", width=width)
    for name in ("proj_in", "proj_out"):
        if sizes.linear:
            table.linear(f"{d}.{name}", f"{s}.{name}", rows=width, columns=width)
        else:
            table.conv(f"{d}.{name}", f"{s}.{name}", rows=width, columns=width, edge=1)
    for k in range(depth):
        inner = f".transformer_blocks.{k}"
        for norm in ("norm1", "norm2", "norm3"):
            table.norm(f"{d}{inner}.{norm}", f"{s}{inner}.{norm}", width=width)
        for name, reads in (("attn1", width), ("attn2", sizes.text_width)):
            at, to = f"{d}{inner}.{name}", f"{s}{inner}.{name}"
            table.linear(f"{at}.to_q", f"{to}.to_q", rows=width, columns=width, bias=False)
            for leaf in ("to_k", "to_v"):
                table.linear(f"{at}.{leaf}", f"{to}.{leaf}", rows=width, columns=reads, bias=False)
            table.linear(f"{at}.to_out.0", f"{to}.to_out.0", rows=width, columns=width)
        at, to = f"{d}{inner}.ff.net", f"{s}{inner}.ff.net"
        table.linear(f"{at}.0.proj", f"{to}.0.proj", rows=8 * width, columns=width)
        table.linear(f"{at}.2", f"{to}.2", rows=width, columns=4 * width)
