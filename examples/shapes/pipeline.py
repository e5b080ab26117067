"""The parts of the shapes pipeline: Stable Diffusion's own classes, small enough for any CPU.

128 px, latents of 16x16x4. Only UNet and text encoder learn; the VAE's weights are set by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.shapes.world import EDGE

FACTOR, SCALING, CONSTANT = 8, 1.5, 64.0
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def tokenizer() -> Any:
    """A CLIP tokenizer of single bytes: 256, the same at a word's end, and begin and end.

    The end has the highest number, since CLIP's pooling may look for that.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in table]
    table |= {byte: chr(256 + spare) for spare, byte in enumerate(others)}
    letters = [table[byte] for byte in (*plain, *others)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), BEGIN, END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=END, model_max_length=77)


def text_encoder(tokens: Any) -> Any:
    """A CLIP text encoder of 0.1 M weights."""
    count = len(tokens)
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config)


def unet() -> Any:
    """A UNet of 2.7 M weights; attention at 8x8 and below only, it costs most on a CPU."""
    return UNet2DConditionModel(
        sample_size=EDGE // FACTOR,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def scheduler() -> Any:
    """The scheduler Stable Diffusion 1.5 comes with."""
    return PNDMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True)


def vae() -> Any:
    """A VAE without training: encoding is the mean of 8x8 blocks, decoding paints blocks.

    Residual branches are zero, so blocks pass their input on. Normalisation and activation are
    made linear: channels come as pairs (x, -x) beside a constant pair (k, -k), so that a group has
    mean 0 and deviation about k/2 whatever the picture, and silu(z) - silu(-z) = z exactly.
    """
    levels = FACTOR.bit_length()
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=EDGE,
        mid_block_add_attention=False,
        scaling_factor=SCALING,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for side in (model.encoder, model.decoder):
            _pairs(side)
        model.encoder.conv_out.bias[4:] = -30.0  # log-variance: no noise
        for sampler in _samplers(model.encoder.down_blocks, "downsamplers"):
            for channel in range(8):
                sampler.conv.weight[channel, channel, :2, :2] = 0.25
        for sampler in _samplers(model.decoder.up_blocks, "upsamplers"):
            for channel in range(8):
                sampler.conv.weight[channel, channel, 1, 1] = 1.0
        model.quant_conv.weight[:, :, 0, 0] = torch.eye(8)
        model.post_quant_conv.weight[:, :, 0, 0] = torch.eye(4)
    return model.eval()


def _pairs(side: Any) -> None:
    for channel in range(3):
        side.conv_in.weight[channel, channel, 1, 1] = 1.0
        side.conv_in.weight[3 + channel, channel, 1, 1] = -1.0
        side.conv_out.weight[channel, channel, 1, 1] = CONSTANT / 2
        side.conv_out.weight[channel, 3 + channel, 1, 1] = -CONSTANT / 2
    side.conv_in.bias[6], side.conv_in.bias[7] = CONSTANT, -CONSTANT


def _samplers(blocks: Any, name: str) -> list[Any]:
    return [sampler for block in blocks for sampler in getattr(block, name) or ()]
