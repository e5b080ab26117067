"""The smallest Stable Diffusion that has every part: random weights, 64 px, a second to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from examples.shapes.pipeline import SCHEDULE, tokenizer

EDGE = 64


def tiny_pipeline(*, v_prediction: bool = False, seed: int = 0) -> Any:
    """A StableDiffusionPipeline of about 0.1 M weights."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=EDGE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=EDGE,
        scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = (
        DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1, prediction_type="v_prediction")
        if v_prediction
        else PNDMScheduler(**SCHEDULE, steps_offset=1, skip_prk_steps=True)
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokens,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_tiny(folder: Path, *, half: bool = False, v_prediction: bool = False) -> Path:
    """Write the tiny pipeline as a Diffusers layout."""
    pipe = tiny_pipeline(v_prediction=v_prediction)
    if half:
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.to(torch.float16)
    pipe.save_pretrained(folder)
    return folder


def write_pictures(folder: Path, *, count: int = 3, edge: int = EDGE) -> list[Path]:
    """Noisy coloured squares as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    paths = []
    for number in range(count):
        pixels = random.integers(0, 255, (edge, edge, 3), dtype=np.uint8)
        paths.append(folder / f"photo {number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
