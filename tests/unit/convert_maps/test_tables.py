"""Tables of names and shapes against the real classes, at the published sizes, without weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from kubebooth_trainer.convert.keys import networks
from kubebooth_trainer.convert.keys.networks import Network
from kubebooth_trainer.convert.keys.sizes import Config, Found
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

SD1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_UP = {"up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
FLUX_VAE = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
VIT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
FLUX = {"guidance_embeds": True, "num_layers": 19, "num_single_layers": 38}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def _clip(kind: Any, config: dict[str, Any]) -> Any:
    return kind(CLIPTextConfig(**config))


NETWORKS: dict[str, tuple[Network, Any, dict[str, Any]]] = {
    "unet of sd1": (networks.UNET, lambda c: UNet2DConditionModel(**c), SD1),
    "inpainting unet": (
        networks.UNET,
        lambda c: UNet2DConditionModel(**c),
        {**SD1, "in_channels": 9},
    ),
    "unet of sd2": (networks.UNET, lambda c: UNet2DConditionModel(**c), SD2),
    "unet of sdxl": (networks.UNET, lambda c: UNet2DConditionModel(**c), SDXL | SDXL_UP),
    "vae": (networks.VAE, lambda c: AutoencoderKL(**c), VAE),
    "vae of flux": (networks.VAE, lambda c: AutoencoderKL(**c), FLUX_VAE),
    "controlnet of sd1": (networks.CONTROLNET, lambda c: ControlNetModel(**c), SD1),
    "controlnet of sdxl": (networks.CONTROLNET, lambda c: ControlNetModel(**c), SDXL),
    "transformer of flux": (networks.TRANSFORMER, lambda c: FluxTransformer2DModel(**c), FLUX),
    "clip-l": (networks.CLIP, lambda c: _clip(CLIPTextModel, c), CLIP_L),
    "vit-h": (networks.OPENCLIP, lambda c: _clip(CLIPTextModel, c), VIT_H),
    "bigg": (
        networks.OPENCLIP_PROJECTED,
        lambda c: _clip(CLIPTextModelWithProjection, c),
        BIG_G,
    ),
    "t5-xxl": (networks.T5, lambda c: T5EncoderModel(T5Config(**c)), T5_XXL),
}


def _config(model: Any) -> dict[str, Any]:
    given = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


@cache
def _model(name: str) -> Any:
    """The real class at full size, without weights."""
    _network, build, config = NETWORKS[name]
    with torch.device("meta"):
        return build(config)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_names_exactly_the_tensors_of_the_real_class(name: str) -> None:
    network, model = NETWORKS[name][0], _model(name)
    real = {network.canonical(k): tuple(v.shape) for k, v in model.state_dict().items()}
    for unread in network.unread:
        real.pop(unread, None)
    links = network.links(network.from_config(Config(_config(model), file="config.json")))
    table = {part.name: part.shape for link in links for part in link.parts}
    assert len(table) == sum(len(link.parts) for link in links)
    assert table == real


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_read_from_a_single_file_are_those_of_the_config(name: str) -> None:
    network, model = NETWORKS[name][0], _model(name)
    sizes = network.from_config(Config(_config(model), file="config.json"))
    links = network.links(sizes)
    shapes = {link.single: link.shape for link in links}
    assert len(shapes) == len(links)
    assert network.from_single(Found(shapes, what="file")) == sizes
