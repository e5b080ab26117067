"""Every family at tiny size: real classes and configs, random weights, made offline in a second.

    write_model(FOLDER, "sdxl")     writes a Diffusers layout of the variant

The same bytes every time. Sizes are small; whatever tells the variants apart is as in the real
files: heads, projections, activations, padding, schedules, scaling factors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
SENTENCES = (
    "a photo of a sks dog on the beach",
    "a photo of a cat in the city at night",
    "a red circle and a blue square",
    "portrait of a person , studio light",
)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Single bytes, the same at a word's end, a few merges, begin and end.

    The end has the highest number: CLIP's pooling looks for that.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in table]
    table |= {byte: chr(256 + spare) for spare, byte in enumerate(others)}
    letters = [table[byte] for byte in (*plain, *others)]
    merges = [("o", "f</w>"), ("d", "o"), ("do", "g</w>")]
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pieces += ["".join(pair) for pair in merges]
    return {piece: number for number, piece in enumerate([*pieces, BEGIN, END])}, merges


def clip_tokenizer(*, pad: str = END) -> Any:
    """A CLIP tokenizer; Stable Diffusion 2 and the second one of SDXL pad with `!`, id 0."""
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def t5_tokenizer() -> Any:
    """A T5 tokenizer of a few whole words, then single characters."""
    words = sorted({"\u2581" + word for line in SENTENCES for word in line.split()})
    letters = ["\u2581"] + [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -4.0 - 0.01 * place) for place, word in enumerate(words)]
    pieces += [(c, -8.0 - 0.01 * place) for place, c in enumerate(letters) if c not in words]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_text(
    tokens: Any, *, hidden: int, layers: int, act: str = "quick_gelu", projected: int | None = None
) -> Any:
    """A CLIP text encoder; real files carry begin 0, end 2 and pad 1, which no vocabulary has."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=hidden,
            intermediate_size=hidden * 2,
            projection_dim=projected or hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act=act,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )


def kl_vae(*, latent: int = 4, quant: bool = True, **more: Any) -> Any:
    """A VAE of four levels, so that a latent pixel is 8 pixels."""
    channels = (4, 8, 8, 8)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **more,
    )


def sd_unet(*, second: bool) -> Any:
    """Stable Diffusion 1 has 8 heads at every level, 2 has heads of one width and linear
    projections."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=[1, 2, 2, 2] if second else 8,
        use_linear_projection=second,
        upcast_attention=second,
    )


def _sd(*, second: bool, velocity: bool) -> Any:
    tokens = clip_tokenizer(pad="!" if second else END)
    if velocity:
        scheduler: Any = DDIMScheduler(
            **SCHEDULE,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        )
    else:
        scheduler = PNDMScheduler(
            **SCHEDULE, set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True
        )
    return StableDiffusionPipeline(
        vae=kl_vae(scaling_factor=0.18215),
        text_encoder=clip_text(tokens, hidden=32, layers=2, act="gelu" if second else "quick_gelu"),
        tokenizer=tokens,
        unet=sd_unet(second=second),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=32 + 48,
        transformer_layers_per_block=[1, 1, 2],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[1, 2, 4],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
    )
    return StableDiffusionXLPipeline(
        vae=kl_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_text(first, hidden=32, layers=3),
        text_encoder_2=clip_text(second, hidden=48, layers=3, act="gelu", projected=48),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _flux() -> Any:
    tokens, pieces = clip_tokenizer(), t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(pieces),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=kl_vae(latent=16, quant=False, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_text(tokens, hidden=24, layers=2),
        tokenizer=tokens,
        text_encoder_2=t5,
        tokenizer_2=pieces,
        transformer=transformer,
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": lambda: _sd(second=False, velocity=False),
    "sd21-512": lambda: _sd(second=True, velocity=False),
    "sd21-768": lambda: _sd(second=True, velocity=True),
    "sdxl": _sdxl,
    "flux-dev": _flux,
}
"""Variant → its pipeline."""


def build(variant: str, *, seed: int = 0) -> Any:
    """The pipeline of a variant with random weights, the same every time."""
    torch.manual_seed(seed)
    pipe = BUILDERS[variant]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_model(
    folder: Path, variant: str, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write the variant as a Diffusers layout whose tokenizers have vocab.json and merges.txt, as
    the real ones do."""
    pipe = build(variant, seed=seed)
    if dtype != torch.float32:
        pipe.to(dtype)
    pipe.save_pretrained(folder)
    vocabulary, merges = clip_vocabulary()
    for place in sorted(folder.glob("tokenizer*")):
        if "CLIP" in (place / "tokenizer_config.json").read_text():
            (place / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
            lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
            (place / "merges.txt").write_text("\n".join(lines))
    return folder
