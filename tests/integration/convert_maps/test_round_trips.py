"""There and back again: every tensor byte for byte, whatever is asked of the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.options import ComponentPrecision, Options
from kubebooth_trainer.convert.planning import plan
from safetensors.torch import load_file, save_file

from tests.tiny import lifelike, models
from tests.tiny.conversion import canonical, content, convert

VARIANTS = ("sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev")
SUFFIXES = ("safetensors", "ckpt")
DTYPES = {"Keep": torch.float32, "Fp16": torch.float16, "Bf16": torch.bfloat16,
          "Fp32": torch.float32}  # fmt: skip
EXTRAS: dict[str, tuple[int, ...]] = {
    "alphas_cumprod": (1000,),
    "betas": (1000,),
    "first_stage_model.loss.logvar": (),
}
"""What published single files carry along and the Diffusers layout has no place for."""
TEXT_EXTRAS: dict[str, dict[str, tuple[int, ...]]] = {
    "sd15": {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77)},
    "sd21-768": {
        "cond_stage_model.model.logit_scale": (),
        "cond_stage_model.model.text_projection": (32, 32),
        **{
            f"cond_stage_model.model.transformer.resblocks.2.{name}": shape
            for name, shape in {
                "attn.in_proj_weight": (96, 32), "attn.in_proj_bias": (96,),
                "attn.out_proj.weight": (32, 32), "attn.out_proj.bias": (32,),
                "ln_1.weight": (32,), "ln_1.bias": (32,), "ln_2.weight": (32,),
                "ln_2.bias": (32,), "mlp.c_fc.weight": (64, 32), "mlp.c_fc.bias": (64,),
                "mlp.c_proj.weight": (32, 64), "mlp.c_proj.bias": (32,),
            }.items()
        },
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.logit_scale": (),
        "denoiser.sigmas": (1000,),
    },
    "flux-dev": {"text_encoders.t5xxl.transformer.encoder.embed_tokens.weight": (120, 32)},
}  # fmt: skip


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {variant: models.write_model(folder / variant, variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def wild(layouts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files with all that published ones carry along, averaged weights included."""
    folder = tmp_path_factory.mktemp("wild")
    made = {}
    for variant in TEXT_EXTRAS:
        path = folder / f"{variant}.safetensors"
        convert(layouts[variant], path)
        tensors = load_file(path)
        torch.manual_seed(4)
        for name, shape in {**EXTRAS, **TEXT_EXTRAS[variant]}.items():
            tensors[name] = torch.randn(shape).to(
                torch.int64 if name.endswith("position_ids") else torch.float32
            )
        if variant != "flux-dev":
            tensors |= averages(tensors)
        save_file(tensors, path, metadata={"modelspec.title": "Mine", "note": "kept"})
        made[variant] = path
    return made


def averages(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Averaged weights as Stable Diffusion's training code names them."""
    made = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): weight * 0.5
        for name, weight in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    return {**made, "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(7)}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_layout_comes_back_from_a_single_file(
    layouts: dict[str, Path], variant: str, suffix: str, tmp_path: Path
) -> None:
    convert(layouts[variant], tmp_path / f"model.{suffix}")
    like = open_local(layouts[variant])
    convert(tmp_path / f"model.{suffix}", tmp_path / "back", configs_from=like)
    assert content(tmp_path / "back") == canonical(content(layouts[variant]))
    for path in ("scheduler/scheduler_config.json", "vae/config.json"):
        told = json.loads((tmp_path / "back" / path).read_text())
        first = json.loads((layouts[variant] / path).read_text())
        for field in ("prediction_type", "scaling_factor", "shift_factor", "_class_name"):
            assert told.get(field) == first.get(field), (path, field)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("variant", TEXT_EXTRAS)
def test_a_single_file_comes_back_from_a_layout_with_all_that_it_carried(
    layouts: dict[str, Path], wild: dict[str, Path], variant: str, suffix: str, tmp_path: Path
) -> None:
    like = open_local(layouts[variant])
    asked: Any = variant
    convert(wild[variant], tmp_path / "layout", ema="Keep", configs_from=like, variant=asked)
    convert(tmp_path / "layout", tmp_path / f"back.{suffix}", ema="Keep")
    assert content(tmp_path / f"back.{suffix}") == content(wild[variant])
    if suffix == "safetensors":
        metadata = open_local(tmp_path / "back.safetensors").metadata
        assert metadata["note"] == "kept"
        assert metadata["modelspec.title"] == "Mine"
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "layout")
    assert type(pipe) is type(DiffusionPipeline.from_pretrained(layouts[variant]))


@pytest.mark.parametrize("variant", TEXT_EXTRAS)
def test_another_container_changes_no_tensor(
    wild: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    asked: Any = variant
    convert(wild[variant], tmp_path / "other.ckpt", ema="Keep", variant=asked)
    assert content(tmp_path / "other.ckpt") == content(wild[variant])
    convert(tmp_path / "other.ckpt", tmp_path / "back.safetensors", ema="Keep", variant=asked)
    assert content(tmp_path / "back.safetensors") == content(wild[variant])


PRECISIONS = st.sampled_from(("Keep", "Fp16", "Bf16", "Fp32"))
EXCEPTIONS = st.sampled_from((None, "Keep", "Fp16", "Bf16", "Fp32"))


@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    variant=st.sampled_from(VARIANTS),
    suffix=st.sampled_from(SUFFIXES),
    precision=PRECISIONS,
    denoiser=EXCEPTIONS,
    text_encoder=EXCEPTIONS,
    vae=EXCEPTIONS,
    metadata=st.dictionaries(st.sampled_from(("title", "author", "tags")),
                             st.text(max_size=20), max_size=2),
)  # fmt: skip
def test_any_options_go_there_and_back(
    layouts: dict[str, Path], tmp_path: Path, variant: str, suffix: str, precision: Any,
    denoiser: Any, text_encoder: Any, vae: Any, metadata: dict[str, str],
) -> None:  # fmt: skip
    """The way back restores what the options made of the model; without them, the model itself."""
    parts = ComponentPrecision(denoiser, text_encoder, vae)
    single, back = tmp_path / f"model.{suffix}", tmp_path / "back"
    convert(layouts[variant], single, precision=precision, component_precision=parts,
            metadata=metadata)  # fmt: skip
    convert(single, back, configs_from=open_local(layouts[variant]))
    again = tmp_path / f"again.{suffix}"
    convert(back, again)
    assert content(again) == content(single)
    roles = {"unet": denoiser, "transformer": denoiser, "vae": vae}
    for name, found in content(back).items():
        folder = name.partition("/")[0]
        asked = roles.get(folder, text_encoder) or precision
        assert found[0] == {"Fp16": "F16", "Bf16": "BF16"}.get(asked, "F32"), name
    if precision == "Keep" and {denoiser, text_encoder, vae} <= {None, "Keep"}:
        assert content(back) == canonical(content(layouts[variant]))


@pytest.mark.parametrize("precision", ["Fp16", "Bf16"])
def test_casts_are_those_of_torch(layouts: dict[str, Path], precision: Any, tmp_path: Path) -> None:
    """Transposed and joined tensors included."""
    convert(layouts["sdxl"], tmp_path / "plain.safetensors")
    convert(layouts["sdxl"], tmp_path / "cast.safetensors", precision=precision)
    plain, cast = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "cast"))
    assert set(plain) == set(cast)
    assert all(torch.equal(plain[name].to(DTYPES[precision]), cast[name]) for name in plain)


def test_averaged_weights_take_the_place_of_plain_ones_or_are_left_out(
    layouts: dict[str, Path], wild: dict[str, Path], tmp_path: Path
) -> None:
    source = load_file(wild["sd15"])
    name = "model.diffusion_model.out.2.weight"
    made = convert(wild["sd15"], tmp_path / "used.safetensors", ema="Use")
    used = load_file(tmp_path / "used.safetensors")
    assert torch.equal(used[name], source[name] * 0.5)
    assert "averaged weights take its place" in made.dropped[name]
    made = convert(wild["sd15"], tmp_path / "dropped.safetensors")
    dropped = load_file(tmp_path / "dropped.safetensors")
    assert torch.equal(dropped[name], source[name])
    assert set(source) - set(dropped) == set(made.dropped)
    assert all(key.startswith("model_ema.") for key in made.dropped)
    convert(wild["sd15"], tmp_path / "layout", ema="Use", configs_from=open_local(layouts["sd15"]))
    weights = load_file(tmp_path / "layout/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["conv_out.weight"], source[name] * 0.5)


def test_a_given_vae_replaces_that_of_the_source(layouts: dict[str, Path], tmp_path: Path) -> None:
    other = models.write_model(tmp_path / "other", "sd15", seed=9)
    convert(other, tmp_path / "other.safetensors")
    for given_vae in (other, other / "vae", tmp_path / "other.safetensors"):
        convert(layouts["sd15"], tmp_path / "swapped.safetensors", vae=open_local(given_vae))
        swapped = content(tmp_path / "swapped.safetensors")
        plain, theirs = (
            content_of(layouts["sd15"], tmp_path),
            content(tmp_path / "other.safetensors"),
        )
        for name in swapped:
            expected = theirs if name.startswith("first_stage_model.") else plain
            assert swapped[name] == expected[name], name


def content_of(layout: Path, folder: Path) -> Any:
    convert(layout, folder / "plain.safetensors")
    return content(folder / "plain.safetensors")


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_a_controlnet_goes_there_and_back(variant: str, tmp_path: Path) -> None:
    lifelike.controlnet(variant).save_pretrained(tmp_path / "control")
    convert(tmp_path / "control", tmp_path / "control.safetensors")
    names = set(load_file(tmp_path / "control.safetensors"))
    assert {"control_model.zero_convs.0.0.weight", "control_model.middle_block_out.0.bias",
            "control_model.input_hint_block.14.weight"} <= names  # fmt: skip
    convert(tmp_path / "control.safetensors", tmp_path / "back", variant="Auto")
    assert content(tmp_path / "back") == content(tmp_path / "control")
    one, two = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("control", "back"))
    assert {k for k in two if not k.startswith("_") and two[k] != one[k]} == set()


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_a_vae_alone_goes_there_and_back(prefix: str, tmp_path: Path) -> None:
    lifelike.vae(scaling_factor=0.13025, force_upcast=True).save_pretrained(tmp_path / "vae")
    convert(tmp_path / "vae", tmp_path / "vae.safetensors")
    bare = load_file(tmp_path / "vae.safetensors")
    assert bare["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    save_file({f"{prefix}{k}": v for k, v in bare.items()}, tmp_path / "wild.safetensors")
    convert(tmp_path / "wild.safetensors", tmp_path / "back", variant="sdxl")
    assert content(tmp_path / "back") == content(tmp_path / "vae")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["scaling_factor"] == 0.13025
    convert(tmp_path / "back", tmp_path / "again.safetensors")
    assert content(tmp_path / "again.safetensors") == content(tmp_path / "wild.safetensors")


def test_what_is_written_does_not_depend_on_the_day(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    plans = [plan(open_local(layouts["sd21-768"]), Options(form)) for form in
             ("Safetensors", "Safetensors", "Diffusers", "Diffusers")]  # fmt: skip
    for first, second in (plans[:2], plans[2:]):
        assert [f.text for f in first.files] == [f.text for f in second.files]
        assert [dict(f.metadata) for f in first.files] == [dict(f.metadata) for f in second.files]
        assert [[t.name for t in f.tensors] for f in first.files] == [
            [t.name for t in f.tensors] for f in second.files
        ]
