"""What a source is, from headers alone, and what is asked for instead of guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubebooth_trainer.convert.detection import detect
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.keys import networks
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.planning import plan
from kubebooth_trainer.errors import ConfigurationError, DataError

from tests.tiny.conversion import Shapes, folder_names, header, headers, single_names

UNET1: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET2 = {**UNET1, "cross_attention_dim": 1024, "use_linear_projection": True}
UNETXL: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
}
VIT_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
}
BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
FLUX: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2}
DENOISER, FIRST = "model.diffusion_model.", "first_stage_model."


def sd1(**more: Any) -> Shapes:
    return {
        **single_names(networks.UNET, {**UNET1, **more}, DENOISER),
        **single_names(networks.VAE, VAE, FIRST),
        **single_names(networks.CLIP, CLIP_L, "cond_stage_model.transformer."),
    }


def sd2() -> Shapes:
    return {
        **single_names(networks.UNET, UNET2, DENOISER),
        **single_names(networks.VAE, VAE, FIRST),
        **single_names(networks.OPENCLIP, VIT_H, "cond_stage_model.model."),
    }


def sdxl() -> Shapes:
    return {
        **single_names(networks.UNET, UNETXL, DENOISER),
        **single_names(networks.VAE, VAE, FIRST),
        **single_names(networks.CLIP, CLIP_L, "conditioner.embedders.0.transformer."),
        **single_names(networks.OPENCLIP_PROJECTED, BIG_G, "conditioner.embedders.1.model."),
    }


def flux(*, guidance: bool, prefix: str = "") -> Shapes:
    return single_names(networks.TRANSFORMER, {**FLUX, "guidance_embeds": guidance}, prefix)


def sd2_folder(scheduler: dict[str, Any]) -> Opened:
    names = {
        **folder_names(networks.UNET, UNET2, "unet"),
        **folder_names(networks.VAE, VAE, "vae"),
        **folder_names(networks.OPENCLIP, VIT_H, "text_encoder"),
    }
    texts = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
        "unet/config.json": UNET2,
        "vae/config.json": VAE,
        "text_encoder/config.json": VIT_H,
        "scheduler/scheduler_config.json": scheduler,
    }
    return Opened(
        "Diffusers",
        {name: header(name, shape) for name, shape in names.items()},
        texts={path: json.dumps(value).encode() for path, value in texts.items()},
    )


@pytest.mark.parametrize(
    ("shapes", "variant", "prediction"),
    [
        (sd1(), "sd15", "epsilon"),
        (sd2(), None, None),
        (sdxl(), "sdxl", "epsilon"),
        (flux(guidance=True), "flux-dev", "flow"),
        (flux(guidance=False, prefix=DENOISER), "flux-schnell", "flow"),
    ],
)
def test_families_are_told_by_names_and_shapes(
    shapes: Shapes, variant: str | None, prediction: str | None
) -> None:
    found = detect(headers(shapes))
    assert (found.kind, found.variant, found.prediction_type) == ("Pipeline", variant, prediction)
    assert found.dtype == "F16"
    assert found.evidence


@pytest.mark.parametrize(
    ("shapes", "kind", "family"),
    [
        (single_names(networks.VAE, VAE, ""), "Vae", "unknown"),
        (single_names(networks.VAE, {**VAE, "latent_channels": 16}, "vae."), "Vae", "flux"),
        (
            single_names(
                networks.CONTROLNET,
                {**UNET1, "conditioning_embedding_out_channels": [16, 32, 96, 256]},
                "control_model.",
            ),
            "ControlNet",
            "sd",
        ),
        (
            single_names(
                networks.CONTROLNET,
                {**UNETXL, "conditioning_embedding_out_channels": [16, 32, 96, 256]},
                "",
            ),
            "ControlNet",
            "sdxl",
        ),
        (
            {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (9216, 4),
            },
            "Lora",
            "flux",
        ),
        (
            {
                "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (
                    4,
                    768,
                ),
                "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (
                    320,
                    4,
                ),
            },
            "Lora",
            "sd",
        ),
    ],
)
def test_single_components_are_told_too(shapes: Shapes, kind: str, family: str) -> None:
    found = detect(headers(shapes))
    assert (found.kind, found.family) == (kind, family)


def test_inpainting_and_averaged_weights_show() -> None:
    found = detect(headers({**sd1(in_channels=9), "model_ema.decay": ()}))
    assert found.in_channels == 9
    assert found.ema
    assert any("9 channels" in line for line in found.evidence)


def test_stable_diffusion_2_is_asked_for_not_guessed() -> None:
    for form in ("Diffusers", "Safetensors", "Ckpt"):
        with pytest.raises(ConfigurationError, match="set variant to sd21-512") as error:
            plan(headers(sd2()), Options(form))  # type: ignore[arg-type]
        assert error.value.reason == "VariantUnknown"


V_YAML = {"model.yaml": b'model:\n  params:\n    parameterization: "v"  # velocity\n'}
EPS_YAML = {"model.yaml": b"model:\n  params:\n    parameterization: eps\n"}
V_SPEC = {"modelspec.prediction_type": "v"}


@pytest.mark.parametrize(
    ("opened", "options", "variant", "evidence"),
    [
        (headers(sd2(), texts=V_YAML), {}, "sd21-768", "model.yaml"),
        (headers(sd2(), texts=EPS_YAML), {}, "sd21-512", "model.yaml"),
        (headers(sd2(), metadata=V_SPEC), {}, "sd21-768", "modelspec.prediction_type"),
        (headers(sd2(), metadata=V_SPEC, texts=EPS_YAML), {}, "sd21-768", "modelspec"),
        (headers({**sd2(), "v_pred": (0,)}, texts=EPS_YAML), {}, "sd21-768", "v_pred"),
        (
            headers(sd2(), metadata={"modelspec.architecture": "stable-diffusion-v2-512"}),
            {},
            "sd21-512",
            "modelspec.architecture",
        ),
        (sd2_folder({"prediction_type": "v_prediction"}), {}, "sd21-768", "scheduler_config"),
        (sd2_folder({"_class_name": "PNDMScheduler"}), {}, "sd21-512", "scheduler_config"),
        (headers(sd2(), texts=V_YAML), {"variant": "sd21-512"}, "sd21-512", "asked for"),
        (
            sd2_folder({"prediction_type": "v_prediction"}),
            {"prediction_type": "Epsilon"},
            "sd21-512",
            "asked for",
        ),
    ],
)
def test_the_first_that_declares_the_prediction_type_counts(
    opened: Opened, options: dict[str, Any], variant: str, evidence: str
) -> None:
    found = detect(opened, Options("Safetensors", **options))
    assert found.variant == variant
    assert any(evidence in line for line in found.evidence), found.evidence


def test_v_prediction_of_sdxl_shows_in_marker_tensors() -> None:
    found = detect(headers({**sdxl(), "v_pred": (0,), "ztsnr": (0,)}))
    assert found.prediction_type == "v_prediction"
    assert found.zero_terminal_snr
    assert not detect(headers({**sdxl(), "v_pred": (0,)})).zero_terminal_snr


@pytest.mark.parametrize(
    ("shapes", "options", "reason"),
    [
        (sd1(), {"variant": "sdxl"}, "VariantMismatch"),
        (sdxl(), {"variant": "sd21-512"}, "VariantMismatch"),
        (flux(guidance=True), {"variant": "flux-schnell"}, "VariantMismatch"),
        (flux(guidance=True), {"prediction_type": "Epsilon"}, "PredictionTypeMismatch"),
        (sd1(), {"prediction_type": "Flow"}, "PredictionTypeMismatch"),
        (sd1(), {"component": "Lora"}, "ComponentMismatch"),
        (single_names(networks.VAE, VAE, ""), {"component": "Pipeline"}, "ComponentMismatch"),
    ],
)
def test_options_that_contradict_the_source_are_refused(
    shapes: Shapes, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        detect(headers(shapes), Options("Safetensors", **options))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"conv.weight": (3, 3)}, "of no family"),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (3, 3)}, "of no family"),
        ({"encoder.down_blocks.0.resnets.0.norm1.weight": (3,)}, "config.json"),
        ({**sdxl(), "conditioner.embedders.0.model.ln_final.weight": (3,)}, "refiner"),
        (
            {
                **sd1(),
                "model.diffusion_model.label_emb.0.0.weight": (1280, 1024),
            },
            "unCLIP",
        ),
        (sd1(in_channels=5), "depth"),
        (
            single_names(networks.TRANSFORMER, {**FLUX, "in_channels": 384}, ""),
            "Fill and Control",
        ),
        ({}, "no tensors"),
    ],
)
def test_what_no_rule_knows_is_refused_by_name(shapes: Shapes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        detect(headers(shapes))


def test_a_vae_of_a_family_that_shapes_hide_is_asked_for() -> None:
    opened = headers(single_names(networks.VAE, VAE, ""))
    with pytest.raises(ConfigurationError, match="set variant"):
        plan(opened, Options("Diffusers"))
    made = plan(opened, Options("Diffusers", variant="sdxl"))
    text = next(file.text for file in made.files if file.path == "config.json")
    assert json.loads(text)["scaling_factor"] == 0.13025
    assert plan(opened, Options("Ckpt")).files[0].path == "model.ckpt"
