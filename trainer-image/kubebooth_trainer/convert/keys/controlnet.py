"""ControlNets of Stable Diffusion 1, 2 and XL: the descending half of a UNet with taps.

Single-file prefix `control_model.`, or none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from kubebooth_trainer.convert.keys import unet
from kubebooth_trainer.convert.keys.links import Link, Table
from kubebooth_trainer.convert.keys.sizes import Config, Found


@dataclass(frozen=True)
class ControlSizes:
    """All that decides names and shapes of a ControlNet."""

    half: unet.UNetSizes
    hint_channels: int
    """Channels of the control picture."""
    hints: tuple[int, ...]
    """Widths of the layers that read the control picture."""


def from_config(config: Config) -> ControlSizes:
    """Sizes of a `ControlNetModel`. Raises `DataError` that names the field."""
    words = config.words("down_block_types")
    up = [unet.PLAIN_UP if kind == unet.PLAIN_DOWN else unet.ATTENTION_UP for kind in words]
    values = {**config.values, "up_block_types": up[::-1], "out_channels": 4}
    return ControlSizes(
        half=unet.from_config(Config(values, file=config.file)),
        hint_channels=config.count("conditioning_channels", 3),
        hints=config.counts("conditioning_embedding_out_channels"),
    )


def from_single(found: Found) -> ControlSizes:
    """Sizes read from the names and shapes of a single file. Raises `DataError`."""
    first, channels = found.shape("input_hint_block.0.weight", 4)[:2]
    last = found.number(r"input_hint_block\.(\d+)\.", most=32) - 1
    # Layers stand at even places; every second one widens.
    hints = [first]
    hints += [found.shape(f"input_hint_block.{k}.weight", 4)[0] for k in range(4, last, 4)]
    return ControlSizes(replace(unet.down_from_single(found), out_channels=4), channels,
                        tuple(hints))  # fmt: skip


def links(sizes: ControlSizes) -> list[Link]:
    """Every tensor of a ControlNet, without prefix."""
    table, half = Table(), sizes.half
    skips = unet.add_down(table, half)
    unet.add_middle(table, half)
    for k, wide in enumerate(skips):
        d, s = f"controlnet_down_blocks.{k}", f"zero_convs.{k}.0"
        table.conv(d, s, rows=wide, columns=wide, edge=1)
    wide = half.channels[-1]
    table.conv("controlnet_mid_block", "middle_block_out.0", rows=wide, columns=wide, edge=1)
    at, hints = "controlnet_cond_embedding", sizes.hints
    table.conv(f"{at}.conv_in", "input_hint_block.0", rows=hints[0], columns=sizes.hint_channels)
    for k, (narrow, wide) in enumerate(pairwise(hints)):
        same, wider = f"input_hint_block.{4 * k + 2}", f"input_hint_block.{4 * k + 4}"
        table.conv(f"{at}.blocks.{2 * k}", same, rows=narrow, columns=narrow)
        table.conv(f"{at}.blocks.{2 * k + 1}", wider, rows=wide, columns=narrow)
    out = f"input_hint_block.{4 * (len(hints) - 1) + 2}"
    table.conv(f"{at}.conv_out", out, rows=half.channels[0], columns=hints[-1])
    return table.links
