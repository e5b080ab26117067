"""How much memory a backward pass needs of its forward pass, by family and size of pictures.

The constants are what autograd saves in the networks of the published sizes; see
`tests/unit/families/test_activations.py`, which counts it without computing. They hold for
attention that does not keep its scores. It must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNET_BYTES = {"sd": (1450, 250), "sdxl": (2650, 240)}
"""Float32 bytes for each latent pixel and channel of the first level: all, and with gradient
checkpointing."""
BLOCK_BYTES, BLOCK_BYTES_RECOMPUTED = 90, 4.3
"""The same of Flux, for each block, token and number of the stream's width."""
TEXT_TOKENS = 512
SHARE_OF_HALF = 0.55
"""Half precision keeps half as much, and a few things in float32 all the same."""
SHARE_OF_BLOCK = 1 / 8
"""What is recomputed at once with gradient checkpointing."""
PIXELS, PACKED_PIXELS = 8, 16
"""Pixels along the edge of a latent pixel, and of a token."""


def activation_bytes(
    family: str, config: Mapping[str, Any], *, samples: int, size: tuple[int, int], half: bool
) -> tuple[int, int]:
    """Bytes kept for the backward pass of `samples` pictures of `size` (height, width) in pixels:
    without and with gradient checkpointing. `config` is that of the denoiser."""
    if family == "flux":
        blocks = _number(config, "num_layers", 19) + _number(config, "num_single_layers", 38)
        tokens = (size[0] // PACKED_PIXELS) * (size[1] // PACKED_PIXELS) + TEXT_TOKENS
        units = samples * tokens * width_of(family, config) * blocks
        every, some = units * float(BLOCK_BYTES), units * BLOCK_BYTES_RECOMPUTED
        some += every / max(blocks, 1)
    else:
        pixels = (size[0] // PIXELS) * (size[1] // PIXELS)
        units = samples * pixels * _first(config)
        every, some = (float(units * number) for number in UNET_BYTES[family])
        some += every * SHARE_OF_BLOCK
    share = SHARE_OF_HALF if half else 1.0
    return int(every * share), int(some * share)


def width_of(family: str, config: Mapping[str, Any]) -> int:
    """Width of a typical layer of the denoiser."""
    if family == "flux":
        heads = _number(config, "num_attention_heads", 24)
        return heads * _number(config, "attention_head_dim", 128)
    return _first(config) * 2


def _first(config: Mapping[str, Any]) -> int:
    channels = config.get("block_out_channels")
    first = channels[0] if isinstance(channels, list) and channels else 320
    return first if type(first) is int else 320


def _number(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    return value if type(value) is int else default
