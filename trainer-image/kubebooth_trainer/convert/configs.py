"""Configs of the Diffusers layout for every family, made from sizes; nothing is ever fetched.

Values that shapes cannot tell are the published models' where widths are such as theirs, and are
otherwise taken from what the caller names; they are never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubebooth_trainer.convert.declared import V_PREDICTION
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.keys.families import FAMILIES, Layout
from kubebooth_trainer.convert.keys.unet import ATTENTION_DOWN, ATTENTION_UP, PLAIN_DOWN, PLAIN_UP
from kubebooth_trainer.convert.models import Loaded, Model
from kubebooth_trainer.errors import ConfigurationError

VERSION = "0.30.0"
"""Version of Diffusers that understands everything written here."""
_ASKED = object()
"""Stands where shapes cannot tell."""
_SCALES: Mapping[Layout, tuple[float, float | None]] = {
    "sd1": (0.18215, None), "sd2": (0.18215, None), "sdxl": (0.13025, None),
    "flux": (0.3611, 0.1159),
}  # fmt: skip
"""Scaling factor and shift of the latents."""
_SAMPLE = {"sd15": 64, "sd21-512": 64, "sd21-768": 96, "sdxl": 128}


def config_of(
    loaded: Loaded, model: Model, found: Detected, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of one network; `given` fills what shapes cannot tell.

    Raises `ConfigurationError` for what neither tells.
    """
    made = _made(loaded, model, found)
    known = {name: value for name, value in made.items() if value is not _ASKED}
    for name in made:
        value = given.get(name)
        if not name.startswith("_") and value is not None and _plain(value):
            known[name] = value
    missing = sorted(set(made) - set(known))
    if missing:
        raise ConfigurationError(
            f"configs-from: {loaded.component.folder or 'the ControlNet'} has widths of its own, so"
            f" {', '.join(missing)} cannot be read from shapes; name a Diffusers folder of a like"
            " model to take configs from",
            reason="ConfigUnknown",
        )
    return dict(sorted(known.items()))


def _plain(value: object) -> bool:
    """Whether a value is one that configs have: a scalar, or a short list of scalars."""
    if isinstance(value, list):
        return len(value) <= 16 and all(isinstance(v, str | int | float) for v in value)
    return isinstance(value, str | int | float)


def _made(loaded: Loaded, model: Model, found: Detected) -> dict[str, Any]:
    layout = found.layout or "sd1"
    name = loaded.component.network.class_name
    if name == "UNet2DConditionModel":
        return {**_unet(loaded.sizes, model, found), **_up(loaded.sizes), "_class_name": name}
    if name == "ControlNetModel":
        sizes = loaded.sizes
        made = _unet(sizes.half, model, found)
        for unknown in ("sample_size", "out_channels", "center_input_sample"):
            made.pop(unknown)
        made |= {"conditioning_channels": sizes.hint_channels,
                 "conditioning_embedding_out_channels": list(sizes.hints),
                 "controlnet_conditioning_channel_order": "rgb"}  # fmt: skip
        return {**made, "_class_name": name}
    if name == "AutoencoderKL":
        return {**_vae(loaded.sizes, layout), "_class_name": name}
    if name == "FluxTransformer2DModel":
        return {**_flux(loaded.sizes), "_class_name": name}
    if name == "T5EncoderModel":
        return {**_t5(loaded.sizes), "architectures": [name]}
    return {**_clip(loaded.sizes, layout, loaded.component.folder), "architectures": [name]}


def _heads(width: int) -> Any:
    """Heads of the published text encoders and UNets are 64 wide."""
    return width // 64 if width % 64 == 0 else _ASKED


def _groups(channels: tuple[int, ...]) -> Any:
    """The published models normalise in 32 groups."""
    return 32 if all(wide % 32 == 0 for wide in channels) else _ASKED


def _unet(sizes: Any, model: Model, found: Detected) -> dict[str, Any]:
    made = {
        "act_fn": "silu",
        "attention_head_dim": _attention(sizes, found),
        "block_out_channels": list(sizes.channels),
        "center_input_sample": False,
        "cross_attention_dim": sizes.text_width,
        "down_block_types": [ATTENTION_DOWN if d else PLAIN_DOWN for d in sizes.down_depths],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": sizes.in_channels,
        "layers_per_block": sizes.layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": _groups(sizes.channels),
        "out_channels": sizes.out_channels,
        "sample_size": _SAMPLE.get(found.variant or "", 64),
        "use_linear_projection": sizes.linear,
        "upcast_attention": found.layout == "sd2" and found.prediction_type == V_PREDICTION,
    }
    if sizes.added is not None:
        made |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _time_ids(sizes.added, model),
            "projection_class_embeddings_input_dim": sizes.added,
            "transformer_layers_per_block": _depths(sizes),
        }
    return made


def _up(sizes: Any) -> dict[str, Any]:
    return {"up_block_types": [ATTENTION_UP if d else PLAIN_UP for d in sizes.up_depths]}


def _attention(sizes: Any, found: Detected) -> Any:
    """Heads of each block, by the misleading name that Diffusers keeps: 8 everywhere in Stable
    Diffusion 1, heads of 64 in its followers."""
    if found.layout == "sd1":
        return 8
    heads = [_heads(wide) for wide in sizes.channels]
    return _ASKED if _ASKED in heads else heads


def _time_ids(added: int, model: Model) -> Any:
    """Width of one embedded number of the six that say size and crop."""
    text = model.components.get("text_encoder_2")
    pooled = text.sizes.projection if text is not None else 1280
    rest = added - pooled
    return rest // 6 if rest > 0 and rest % 6 == 0 else _ASKED


def _depths(sizes: Any) -> list[int]:
    """Blocks without attention have no depth; 1 stands in their place."""
    return [*(max(depth, 1) for depth in sizes.down_depths[:-1]), sizes.mid_depth]


def _vae(sizes: Any, layout: Layout) -> dict[str, Any]:
    scale, shift = _SCALES[layout]
    count = len(sizes.channels)
    made = {
        "act_fn": "silu",
        "block_out_channels": list(sizes.channels),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "force_upcast": layout in {"sdxl", "flux"},
        "in_channels": sizes.pictures,
        "latent_channels": sizes.latents,
        "layers_per_block": sizes.layers,
        "mid_block_add_attention": sizes.attention,
        "norm_num_groups": _groups(sizes.channels),
        "out_channels": sizes.pictures,
        "sample_size": {"sdxl": 1024, "flux": 1024, "sd2": 768}.get(layout, 512),
        "scaling_factor": scale,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "use_post_quant_conv": sizes.post_quant,
        "use_quant_conv": sizes.quant,
    }
    return made if shift is None else {**made, "shift_factor": shift}


def _clip(sizes: Any, layout: Layout, folder: str) -> dict[str, Any]:
    open_clip = layout == "sd2" or (layout == "sdxl" and folder == "text_encoder_2")
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "hidden_size": sizes.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": sizes.inner,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": sizes.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": _heads(sizes.width),
        "num_hidden_layers": sizes.layers,
        "pad_token_id": 1,
        "projection_dim": sizes.projection or (512 if layout == "sd2" else sizes.width),
        "vocab_size": sizes.words,
    }


def _t5(sizes: Any) -> dict[str, Any]:
    return {
        "d_ff": sizes.inner,
        "d_kv": sizes.attention // sizes.heads,
        "d_model": sizes.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": sizes.layers,
        "num_heads": sizes.heads,
        "num_layers": sizes.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": sizes.buckets,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": sizes.words,
    }


def _flux(sizes: Any) -> dict[str, Any]:
    return {
        "attention_head_dim": sizes.head,
        "axes_dims_rope": [16, 56, 56] if sizes.head == 128 else _ASKED,
        "guidance_embeds": sizes.guidance,
        "in_channels": sizes.in_channels,
        "joint_attention_dim": sizes.text_width,
        "num_attention_heads": sizes.width // sizes.head,
        "num_layers": sizes.double,
        "num_single_layers": sizes.single,
        "patch_size": 1,
        "pooled_projection_dim": sizes.pooled_width,
    }


def pipeline_index(found: Detected, parts: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """`model_index.json`: `parts` are library and class by folder; what is absent is null."""
    family = FAMILIES[found.layout or "sd1"]
    name = family.pipeline
    if found.in_channels == 9:
        name = name.replace("Pipeline", "InpaintPipeline")
    if found.in_channels == 8:
        name = name.replace("Pipeline", "InstructPix2PixPipeline")
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": VERSION}
    folders = [component.folder for component in family.components]
    folders += ["scheduler", "tokenizer"]
    if found.layout in {"sdxl", "flux"}:
        folders.append("tokenizer_2")
    for folder in sorted(folders):
        index[folder] = list(parts.get(folder, (None, None)))
    if found.layout in {"sd1", "sd2"}:
        index |= {"feature_extractor": [None, None], "requires_safety_checker": False,
                  "safety_checker": [None, None]}  # fmt: skip
    if found.layout == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    return index
