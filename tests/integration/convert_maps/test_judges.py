"""Loaders that know nothing of the converter read its files and compute what the original does."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

from tests.tiny import lifelike, models
from tests.tiny.conversion import convert

VARIANTS = ("sd15", "sd21-512", "sd21-768", "sdxl")
PIPELINES: dict[str, Any] = {"sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {variant: lifelike.write(variant, folder / variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def singles(layouts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("singles")
    made = {}
    for variant, layout in layouts.items():
        made[variant] = folder / f"{variant}.safetensors"
        convert(layout, made[variant])
    return made


@pytest.fixture(scope="module")
def open_clip() -> Iterator[Any]:
    """The text transformer of OpenCLIP. Its package asks for torchvision, its text half does not
    use it."""
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].FrozenBatchNorm2d = object  # type: ignore[attr-defined]
    package = types.ModuleType("open_clip")
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["open_clip"] = package
    module = importlib.import_module("open_clip.transformer")
    for name in names:
        del sys.modules[name]
    yield module
    for name in [n for n in sys.modules if n.partition(".")[0] == "open_clip"]:
        del sys.modules[name]


def below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def near(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two results are equal but for the order of their sums, and say anything at all."""
    return bool((first - second).abs().max() < tolerance) and bool(first.std() > 1e-2)


def ids() -> torch.Tensor:
    words = torch.randint(1000, (2, 77), generator=torch.Generator().manual_seed(1))
    words[:, 20] = lifelike.WORDS - 1
    return words


# --- diffusers' own reader of single files


@pytest.mark.parametrize(
    ("variant", "suffix"),
    [
        ("sd15", "safetensors"),
        ("sd15", "ckpt"),
        ("sd21-768", "safetensors"),
        ("sdxl", "safetensors"),
    ],
)
def test_diffusers_reads_the_single_file_to_the_same_weights(
    layouts: dict[str, Path], variant: str, suffix: str, tmp_path: Path
) -> None:
    convert(layouts[variant], tmp_path / f"model.{suffix}")
    kind = PIPELINES.get(variant, StableDiffusionPipeline)
    read = kind.from_single_file(
        tmp_path / f"model.{suffix}", config=str(layouts[variant]), local_files_only=True
    )
    original = DiffusionPipeline.from_pretrained(layouts[variant])
    parts = [k for k, v in original.components.items() if isinstance(v, torch.nn.Module)]
    assert len(parts) == (4 if variant == "sdxl" else 3)
    for part in parts:
        first = dict(original.components[part].named_parameters())
        second = dict(read.components[part].named_parameters())
        assert set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first), part


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("variant", ["sd15", "sd21-768", "sdxl"])
def test_a_layout_made_offline_from_a_single_file_paints_the_same(
    layouts: dict[str, Path], singles: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    convert(singles[variant], tmp_path / "layout", variant=variant if "21" in variant else "Auto")
    pictures = []
    for folder in (layouts[variant], tmp_path / "layout"):
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(
            "a photo of a dog", num_inference_steps=2, height=64, width=64, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        pictures.append(made.images)
    assert pictures[0].std() > 0.1
    assert torch.equal(*pictures)


def test_bundled_configs_say_the_same_as_those_of_the_original(
    layouts: dict[str, Path], singles: dict[str, Path], tmp_path: Path
) -> None:
    """From the CKPT, which carries no configs: all is read from shapes."""
    for variant in VARIANTS:
        convert(layouts[variant], tmp_path / f"{variant}.ckpt")
        convert(tmp_path / f"{variant}.ckpt", tmp_path / variant)
        first = DiffusionPipeline.from_pretrained(layouts[variant])
        second = DiffusionPipeline.from_pretrained(tmp_path / variant)
        ignored = {
            "_name_or_path",
            "_diffusers_version",
            "sample_size",
            "upcast_attention",
            "projection_dim",
            "dtype",
        }
        for part in ("unet", "vae", "text_encoder"):
            one, two = (_config(pipe.components[part]) for pipe in (first, second))
            differ = {k for k in one if one[k] != two.get(k) and k not in ignored}
            assert differ == set(), (variant, part)
        assert first.scheduler.config.prediction_type == second.scheduler.config.prediction_type
        assert type(first.scheduler) is type(second.scheduler)


def _config(model: Any) -> dict[str, Any]:
    config = model.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


# --- ldm, the code that Stable Diffusion was published with


@pytest.mark.parametrize("variant", ["sd15", "sd21-512"])
def test_ldm_computes_the_same_denoiser(
    layouts: dict[str, Path],
    singles: dict[str, Path],
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    # Asked for the kind of one argument only.
    listconfig = types.ModuleType("omegaconf.listconfig")
    listconfig.ListConfig = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.listconfig", listconfig)
    second = variant != "sd15"
    judge = UNetModel(
        image_size=8, in_channels=4, model_channels=64 if second else 32, out_channels=4,
        num_res_blocks=2, attention_resolutions=[1, 2, 4], channel_mult=(1, 2, 2, 2),
        use_spatial_transformer=True, transformer_depth=1, context_dim=lifelike.WIDTH, legacy=False,
        use_linear_in_transformer=second,
        **({"num_head_channels": 64} if second else {"num_heads": 8}),
    ).eval()  # fmt: skip
    judge.load_state_dict(below(load_file(singles[variant]), "model.diffusion_model."))
    unet = DiffusionPipeline.from_pretrained(layouts[variant]).unet
    torch.manual_seed(2)
    noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, lifelike.WIDTH)
    steps = torch.tensor([7, 900])
    with torch.no_grad():
        assert near(unet(noise, steps, text).sample, judge(noise, steps, context=text))


def test_ldm_computes_the_same_vae(layouts: dict[str, Path], singles: dict[str, Path]) -> None:
    from ldm.modules.diffusionmodules.model import Decoder, Encoder

    sizes: dict[str, Any] = {
        "ch": 32, "out_ch": 3, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 2,
        "attn_resolutions": [], "in_channels": 3, "resolution": 64, "z_channels": 4,
    }  # fmt: skip
    tensors = below(load_file(singles["sd15"]), "first_stage_model.")
    encoder, decoder = Encoder(double_z=True, **sizes).eval(), Decoder(**sizes).eval()
    encoder.load_state_dict(below(tensors, "encoder."))
    decoder.load_state_dict(below(tensors, "decoder."))
    vae = DiffusionPipeline.from_pretrained(layouts["sd15"]).vae
    torch.manual_seed(2)
    picture, latents = torch.randn(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        moments = torch.nn.functional.conv2d(
            encoder(picture), tensors["quant_conv.weight"], tensors["quant_conv.bias"]
        )
        painted = decoder(
            torch.nn.functional.conv2d(
                latents, tensors["post_quant_conv.weight"], tensors["post_quant_conv.bias"]
            )
        )
        assert near(vae.encode(picture).latent_dist.parameters, moments)
        assert near(vae.decode(latents).sample, painted)


# --- OpenCLIP, whose text encoders SD2 and SDXL have


def test_open_clip_computes_the_same_text_of_sdxl(
    layouts: dict[str, Path], singles: dict[str, Path], open_clip: Any
) -> None:
    judge = open_clip.TextTransformer(
        vocab_size=lifelike.WORDS, width=128, heads=2, layers=2, output_dim=128
    ).eval()
    tensors = below(load_file(singles["sdxl"]), "conditioner.embedders.1.model.")
    judge.load_state_dict(tensors)
    encoder = DiffusionPipeline.from_pretrained(layouts["sdxl"]).text_encoder_2
    with torch.no_grad():
        expected = encoder(ids()).text_embeds
        assert near(expected, judge(ids()))
        judge.text_projection.copy_(judge.text_projection.T.clone())
        assert not near(expected, judge(ids())), "a projection left untransposed must show"


def test_open_clip_computes_the_same_text_of_sd2(
    layouts: dict[str, Path], singles: dict[str, Path], open_clip: Any
) -> None:
    judge = open_clip.TextTransformer(
        vocab_size=lifelike.WORDS, width=64, heads=1, layers=2, proj_type="none"
    ).eval()
    judge.load_state_dict(below(load_file(singles["sd21-768"]), "cond_stage_model.model."))
    encoder = DiffusionPipeline.from_pretrained(layouts["sd21-768"]).text_encoder
    with torch.no_grad():
        assert near(encoder(ids()).pooler_output, judge(ids()))


# --- Flux


def test_the_converter_of_diffusers_reads_our_flux_to_the_same_weights(tmp_path: Path) -> None:
    """It has the published width written into it; at ours it is the same code."""
    models.write_model(tmp_path / "flux", "flux-dev")
    convert(tmp_path / "flux", tmp_path / "flux.safetensors")
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    source = inspect.getsource(theirs)
    assert "inner_dim = 3072" in source
    space = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", "inner_dim = 32"), space)
    tensors = load_file(tmp_path / "flux.safetensors")
    denoiser = {k: v for k, v in tensors.items() if k.startswith("model.diffusion_model.")}
    read = space[theirs.__name__](denoiser)
    original = DiffusionPipeline.from_pretrained(tmp_path / "flux").transformer.state_dict()
    assert set(read) == set(original)
    assert all(torch.equal(read[name], original[name]) for name in original)
