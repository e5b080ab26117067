"""Small models whose widths are such as the published ones': 64 to a head, 32 groups, CLIP's whole
vocabulary. So independent loaders open them, and nothing about them has to be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from kubebooth_trainer.convert import tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests.tiny.models import SCHEDULE

WIDTH = 64
WIDE = 128
"""Width of the second text encoder of SDXL; loaders tell the two apart by it."""
WORDS = tokenizers.WORDS


def tokenizer(folder: Path, *, pad: str) -> Any:
    """The tokenizer that the converter bundles."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tokenizers.clip_files(pad=pad).items():
        (folder / name).write_bytes(data)
    return CLIPTokenizer.from_pretrained(folder)


def text(*, layers: int, act: str, projected: bool = False) -> Any:
    """A CLIP text encoder."""
    width = WIDE if projected else WIDTH
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return kind(config).eval()


def vae(**more: Any) -> Any:
    """A VAE of four levels."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
        **more,
    ).eval()


def unet(variant: str, **more: Any) -> Any:
    """A UNet; the heads of Stable Diffusion 1 are 8, those of its followers 64 wide."""
    if variant == "sdxl":
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(64, 64, 128),
            layers_per_block=2,
            cross_attention_dim=WIDTH + WIDE,
            transformer_layers_per_block=[1, 1, 2],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=[1, 1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDE,
            **more,
        ).eval()
    second = variant != "sd15"
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128, 128, 128) if second else (32, 64, 64, 64),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=[1, 2, 2, 2] if second else 8,
        use_linear_projection=second,
        **more,
    ).eval()


def build(variant: str, folder: Path, *, seed: int = 0, **unet_more: Any) -> Any:
    """A pipeline of `sd15`, `sd21-512`, `sd21-768` or `sdxl`; tokenizers are written below
    `folder`."""
    torch.manual_seed(seed)
    if variant == "sdxl":
        return StableDiffusionXLPipeline(
            vae=vae(scaling_factor=0.13025, force_upcast=True),
            text_encoder=text(layers=2, act="quick_gelu"),
            text_encoder_2=text(layers=2, act="gelu", projected=True),
            tokenizer=tokenizer(folder / "tokenizer", pad=tokenizers.END),
            tokenizer_2=tokenizer(folder / "tokenizer_2", pad="!"),
            unet=unet(variant, **unet_more),
            scheduler=EulerDiscreteScheduler(
                **SCHEDULE, timestep_spacing="leading", steps_offset=1
            ),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    second, velocity = variant != "sd15", variant == "sd21-768"
    more = {"clip_sample": False, "prediction_type": "v_prediction"} if velocity else {}
    kind: Any = DDIMScheduler if velocity else PNDMScheduler
    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=text(layers=2, act="gelu" if second else "quick_gelu"),
        tokenizer=tokenizer(folder / "tokenizer", pad="!" if second else tokenizers.END),
        unet=unet(variant, **unet_more),
        scheduler=kind(
            **SCHEDULE, set_alpha_to_one=False, steps_offset=1, **more,
            **({} if velocity else {"skip_prk_steps": True}),
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def write(variant: str, folder: Path, *, seed: int = 0) -> Path:
    """The pipeline as a Diffusers layout."""
    build(variant, folder, seed=seed).save_pretrained(folder)
    return folder


def controlnet(variant: str) -> Any:
    """A ControlNet that fits to `unet(variant)`, its taps not zero."""
    torch.manual_seed(3)
    model = ControlNetModel.from_unet(unet(variant))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model.eval()
