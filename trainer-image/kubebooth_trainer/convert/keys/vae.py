"""The picture autoencoder of every family: Diffusers names and those of LDM.

Single-file prefix `first_stage_model.`, `vae.` in all-in-one Flux files, none in VAE-only files.
Attention is linear layers on the one side and 1x1 convolutions on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import MOST_LAYERS, Config, Found

LEGACY = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Names that Diffusers gave to attention before 0.18."""


@dataclass(frozen=True)
class VaeSizes:
    """All that decides names and shapes of an autoencoder."""

    channels: tuple[int, ...]
    layers: int
    """Residual blocks of an encoder block; decoder blocks have one more."""
    latents: int
    quant: bool
    """Whether it has `quant_conv`."""
    post_quant: bool
    attention: bool = True
    """Whether the middle has attention."""
    pictures: int = 3
    """Channels of the picture."""


def from_config(config: Config) -> VaeSizes:
    """Sizes of an `AutoencoderKL`. Raises `DataError` that names the field."""
    return VaeSizes(
        channels=config.counts("block_out_channels"),
        layers=config.count("layers_per_block", 1, most=MOST_LAYERS),
        latents=config.count("latent_channels", 4),
        quant=config.truth("use_quant_conv", True),
        post_quant=config.truth("use_post_quant_conv", True),
        attention=config.truth("mid_block_add_attention", True),
        pictures=config.count("in_channels", 3),
    )


def from_single(found: Found) -> VaeSizes:
    """Sizes read from the names and shapes of a single file. Raises `DataError`."""
    blocks = found.number(r"encoder\.down\.(\d+)\.", most=8)
    return VaeSizes(
        channels=tuple(
            found.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0]
            for i in range(max(blocks, 1))
        ),
        layers=found.number(r"encoder\.down\.0\.block\.(\d+)\.", most=MOST_LAYERS),
        latents=found.shape("decoder.conv_in.weight", 4)[1],
        quant="quant_conv.weight" in found,
        post_quant="post_quant_conv.weight" in found,
        attention="encoder.mid.attn_1.q.weight" in found,
        pictures=found.shape("encoder.conv_in.weight", 4)[1],
    )


def modern(name: str) -> str:
    """A Diffusers name with today's words for attention."""
    head, found, tail = name.partition(".mid_block.attentions.0.")
    word, dot, leaf = tail.rpartition(".")
    return f"{head}{found}{LEGACY[word]}{dot}{leaf}" if found and word in LEGACY else name


def links(sizes: VaeSizes) -> list[Link]:
    """Every tensor of an autoencoder, without prefix."""
    table = Table()
    _encoder(table, sizes)
    _decoder(table, sizes)
    if sizes.quant:
        both = 2 * sizes.latents
        table.conv("quant_conv", "quant_conv", rows=both, columns=both, edge=1)
    if sizes.post_quant:
        wide = sizes.latents
        table.conv("post_quant_conv", "post_quant_conv", rows=wide, columns=wide, edge=1)
    return table.links


def _encoder(table: Table, sizes: VaeSizes) -> None:
    channels = sizes.channels
    table.conv("encoder.conv_in", "encoder.conv_in", rows=channels[0], columns=sizes.pictures)
    width = channels[0]
    for i, wide in enumerate(channels):
        d, s = f"encoder.down_blocks.{i}", f"encoder.down.{i}"
        for j in range(sizes.layers):
            _resnet(table, f"{d}.resnets.{j}", f"{s}.block.{j}", inputs=width, width=wide)
            width = wide
        if i < len(channels) - 1:
            table.conv(f"{d}.downsamplers.0.conv", f"{s}.downsample.conv", rows=wide, columns=wide)
    _middle(table, "encoder", channels[-1], attention=sizes.attention)
    _end(table, "encoder", inputs=channels[-1], rows=2 * sizes.latents)


def _decoder(table: Table, sizes: VaeSizes) -> None:
    channels = sizes.channels[::-1]
    table.conv("decoder.conv_in", "decoder.conv_in", rows=channels[0], columns=sizes.latents)
    _middle(table, "decoder", channels[0], attention=sizes.attention)
    width, last = channels[0], len(channels) - 1
    for i, wide in enumerate(channels):
        d, s = f"decoder.up_blocks.{i}", f"decoder.up.{last - i}"
        for j in range(sizes.layers + 1):
            _resnet(table, f"{d}.resnets.{j}", f"{s}.block.{j}", inputs=width, width=wide)
            width = wide
        if i < last:
            table.conv(f"{d}.upsamplers.0.conv", f"{s}.upsample.conv", rows=wide, columns=wide)
    _end(table, "decoder", inputs=channels[-1], rows=sizes.pictures)


def _middle(table: Table, half: str, width: int, *, attention: bool) -> None:
    d, s = f"{half}.mid_block", f"{half}.mid"
    for j in (0, 1):
        _resnet(table, f"{d}.resnets.{j}", f"{s}.block_{j + 1}", inputs=width, width=width)
    if not attention:
        return
    at, to = f"{d}.attentions.0", f"{s}.attn_1"
    table.norm(f"{at}.group_norm", f"{to}.norm", width=width)
    for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        table.as_conv(f"{at}.{ours}", f"{to}.{theirs}", rows=width, columns=width)


def _resnet(table: Table, d: str, s: str, *, inputs: int, width: int) -> None:
    table.norm(f"{d}.norm1", f"{s}.norm1", width=inputs)
    table.conv(f"{d}.conv1", f"{s}.conv1", rows=width, columns=inputs)
    table.norm(f"{d}.norm2", f"{s}.norm2", width=width)
    table.conv(f"{d}.conv2", f"{s}.conv2", rows=width, columns=width)
    if inputs != width:
        d, s = f"{d}.conv_shortcut", f"{s}.nin_shortcut"
        table.conv(d, s, rows=width, columns=inputs, edge=1)


def _end(table: Table, half: str, *, inputs: int, rows: int) -> None:
    table.norm(f"{half}.conv_norm_out", f"{half}.norm_out", width=inputs)
    table.conv(f"{half}.conv_out", f"{half}.conv_out", rows=rows, columns=inputs)
