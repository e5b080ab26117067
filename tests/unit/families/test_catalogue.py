"""The catalogue's sizes are those of the published configurations, counted without weights."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from kubebooth_api.catalog import BASE_MODELS
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def sd_unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        down_block_types=(CROSS, CROSS, CROSS, PLAIN),
        up_block_types=(PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP),
        block_out_channels=(320, 640, 1280, 1280),
        **more,
    )


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        down_block_types=(PLAIN, CROSS, CROSS),
        up_block_types=(CROSS_UP, CROSS_UP, PLAIN_UP),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def clip(kind: Any, width: int, layers: int, projected: int) -> Any:
    return kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=projected,
        )
    )


def t5() -> Any:
    return T5EncoderModel(
        T5Config(
            d_model=4096,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )


def vae(channels: int, *, quant: bool = True) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


@pytest.mark.parametrize("variant", BASE_MODELS)
def test_parameters_are_those_of_the_published_models(variant: str):
    row = BASE_MODELS[variant]
    with torch.device("meta"):
        small = clip(CLIPTextModel, 768, 12, 768)
        denoiser, texts = {
            "sd15": lambda: (sd_unet(cross_attention_dim=768), (small,)),
            "sd21-512": lambda: (
                sd_unet(
                    cross_attention_dim=1024,
                    attention_head_dim=[5, 10, 20, 20],
                    use_linear_projection=True,
                ),
                (clip(CLIPTextModel, 1024, 23, 512),),
            ),
            "sdxl": lambda: (
                sdxl_unet(),
                (small, clip(CLIPTextModelWithProjection, 1280, 32, 1280)),
            ),
            "flux-dev": lambda: (FluxTransformer2DModel(guidance_embeds=True), (small, t5())),
        }[variant.replace("768", "512")]()
        decoder = vae(row.latent_channels, quant=variant != "flux-dev")
    assert count(denoiser) == row.memory.denoiser_parameters
    assert tuple(count(text) for text in texts) == row.memory.text_encoder_parameters
    assert count(decoder) == row.memory.vae_parameters
