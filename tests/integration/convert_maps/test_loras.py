"""Low-rank updates between dialects: the same strength, the same bytes, the same pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import lora_conversion_utils
from diffusers.training_utils import _collate_lora_metadata
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.options import Merged
from kubebooth_trainer.errors import ConfigurationError, DataError, WorkerError
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.tiny import models
from tests.tiny.conversion import content, convert

Tensors = dict[str, torch.Tensor]
UNET = r".*(to_q|to_k|to_v|to_out\.0|ff\.net\.2|resnets\.\d+\.conv1|conv_shortcut)"
TRANSFORMER = r".*(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|norm_out\.linear|proj_mlp)"
VARIANTS = {"sd15": UNET, "sdxl": UNET, "flux-dev": TRANSFORMER}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {variant: models.write_model(folder / variant, variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def peft_files(layouts: dict[str, Path]) -> dict[str, Path]:
    """Updates of the denoiser as Diffusers and peft write them, alpha apart from rank."""
    made = {}
    for variant, targets in VARIANTS.items():
        pipe = DiffusionPipeline.from_pretrained(layouts[variant])
        part = "transformer" if variant == "flux-dev" else "unet"
        odd = "norm_out.linear" if variant == "flux-dev" else "conv1"
        torch.manual_seed(5)
        core = pipe.components[part]
        core.add_adapter(
            LoraConfig(
                r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False,
                rank_pattern={odd: 2}, alpha_pattern={odd: 1.5},
            )
        )  # fmt: skip
        layers: Any = {f"{part}_lora_layers": get_peft_model_state_dict(core)}
        folder = layouts[variant].parent / f"{variant}-peft"
        pipe.save_lora_weights(folder, **layers, **_collate_lora_metadata({part: core}))
        made[variant] = folder / "pytorch_lora_weights.safetensors"
    return made


def picture(layout: Path, lora: Path | None, variant: str) -> torch.Tensor:
    """Latents after two steps."""
    pipe = DiffusionPipeline.from_pretrained(layout)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora))
    more = {"max_sequence_length": 16} if variant == "flux-dev" else {}
    made = pipe("a dog", num_inference_steps=2, height=64, width=64, output_type="latent",
                generator=torch.Generator().manual_seed(0), **more)  # fmt: skip
    return torch.as_tensor(made.images)


pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_counts_the_same_in_every_dialect_and_merged(
    layouts: dict[str, Path], peft_files: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    """Diffusers loads its own file and ours; Flux of small width it reads in its own dialect."""
    asked: Any = variant
    kohya, peft = tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors"
    convert(peft_files[variant], kohya, variant=asked)
    convert(kohya, peft, lora_dialect="Peft", variant=asked)
    assert content(peft) == content(peft_files[variant])
    plain = picture(layouts[variant], None, variant)
    expected = picture(layouts[variant], peft_files[variant], variant)
    assert (expected - plain).abs().max() > 1e-3
    others = (peft,) if variant == "flux-dev" else (kohya, peft)
    for lora in others:
        assert torch.allclose(picture(layouts[variant], lora, variant), expected, atol=1e-5)
    for lora in (kohya, peft):
        convert(layouts[variant], tmp_path / "merged", merge_loras=(Merged(open_local(lora)),))
        merged = picture(tmp_path / "merged", None, variant)
        assert torch.allclose(merged, expected, atol=1e-4), lora


def test_merging_knows_weights_and_joined_tensors(
    layouts: dict[str, Path], peft_files: dict[str, Path], tmp_path: Path
) -> None:
    """Into a single file of Flux, whose query, key and value are one tensor."""
    update = open_local(peft_files["flux-dev"])
    merged = (Merged(update, weight=0.5), Merged(update, weight=-0.2))
    convert(layouts["flux-dev"], tmp_path / "merged.safetensors", merge_loras=merged)
    convert(layouts["flux-dev"], tmp_path / "plain.safetensors")
    base, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "merged"))
    lora = load_file(peft_files["flux-dev"])
    path = "transformer.transformer_blocks.0.attn"
    delta = torch.cat([
        lora[f"{path}.{name}.lora_B.weight"] @ lora[f"{path}.{name}.lora_A.weight"]
        for name in ("to_q", "to_k", "to_v")
    ])  # fmt: skip
    name = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
    assert torch.allclose(found[name], base[name] + 0.3 * 6 / 4 * delta, atol=1e-6)
    changed = {key for key in base if not torch.equal(base[key], found[key])}
    assert "model.diffusion_model.final_layer.adaLN_modulation.1.weight" in changed
    assert not any(key.startswith(("vae.", "text_encoders.")) for key in changed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_of_kohya_come_back_byte_for_byte(
    peft_files: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    asked: Any = variant
    first, peft, again = (tmp_path / f"{name}.safetensors" for name in ("first", "peft", "again"))
    convert(peft_files[variant], first, variant=asked)
    convert(first, peft, lora_dialect="Peft", variant=asked)
    convert(peft, again, variant=asked)
    assert content(again) == content(first)
    convert(first, tmp_path / "same.ckpt", variant=asked)
    assert content(tmp_path / "same.ckpt") == content(first)


def test_text_encoders_have_the_names_that_every_interface_reads(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    """Both forms of today's CLIP, whatever it was saved as."""
    pipe = DiffusionPipeline.from_pretrained(layouts["sdxl"])
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "fc1"])
    tensors = {}
    for part in ("text_encoder", "text_encoder_2"):
        model = inject_adapter_in_model(config, pipe.components[part])
        found = get_peft_model_state_dict(model)
        tensors |= {f"{part}.{name}": weight.contiguous() for name, weight in found.items()}
    save_file(tensors, tmp_path / "text.safetensors")
    convert(tmp_path / "text.safetensors", tmp_path / "kohya.safetensors")
    names = set(load_file(tmp_path / "kohya.safetensors"))
    layer = "text_model_encoder_layers_0_mlp_fc1"
    assert {f"lora_te1_{layer}.lora_down.weight", f"lora_te2_{layer}.alpha"} <= names
    assert all(name.startswith(("lora_te1_text_model_", "lora_te2_text_model_")) for name in names)


def test_diffusers_reads_our_fused_flux_to_the_original(tmp_path: Path) -> None:
    """At the published width, which its converter has written into it."""
    torch.manual_seed(1)
    shapes = {
        "transformer_blocks.0.attn.to_q": (3072, 3072),
        "transformer_blocks.0.attn.to_k": (3072, 3072),
        "transformer_blocks.0.attn.to_v": (3072, 3072),
        "single_transformer_blocks.0.attn.to_q": (3072, 3072),
        "single_transformer_blocks.0.attn.to_k": (3072, 3072),
        "single_transformer_blocks.0.attn.to_v": (3072, 3072),
        "single_transformer_blocks.0.proj_mlp": (12288, 3072),
    }
    tensors = {}
    for path, (rows, columns) in shapes.items():
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(2, columns)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(tensors, tmp_path / "peft.safetensors")
    convert(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors")
    fused = load_file(tmp_path / "kohya.safetensors")
    assert fused["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape == (9216, 6)
    assert fused["lora_unet_double_blocks_0_img_attn_qkv.alpha"] == 6
    read = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(dict(fused))
    for path, (_rows, columns) in shapes.items():
        vector = torch.randn(columns)
        changes = [
            found[f"transformer.{path}.lora_B.weight"]
            @ (found[f"transformer.{path}.lora_A.weight"] @ vector)
            for found in (read, tensors)
        ]
        assert torch.allclose(*changes, atol=1e-3), path


def dense_flux(rank: int = 6, width: int = 8) -> Tensors:
    """Updates of fused modules as kohya trains them: no blocks on a diagonal."""
    torch.manual_seed(2)
    made = {}
    for name, rows in (("double_blocks_3_txt_attn_qkv", 3 * width),
                       ("single_blocks_12_linear1", 7 * width)):  # fmt: skip
        made[f"lora_unet_{name}.lora_down.weight"] = torch.randn(rank, width).half()
        made[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, rank).half()
        made[f"lora_unet_{name}.alpha"] = torch.tensor(3.0).half()
    return made


def test_a_dense_fused_update_is_taken_apart_without_loss(tmp_path: Path) -> None:
    source = dense_flux()
    save_file(source, tmp_path / "kohya.safetensors")
    convert(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors", lora_dialect="Peft")
    peft = load_file(tmp_path / "peft.safetensors")
    whole = source["lora_unet_double_blocks_3_txt_attn_qkv.lora_up.weight"].float()
    down = source["lora_unet_double_blocks_3_txt_attn_qkv.lora_down.weight"].float()
    path = "transformer.transformer_blocks.3.attn"
    parts = [
        peft[f"{path}.{name}.lora_B.weight"].float() @ peft[f"{path}.{name}.lora_A.weight"].float()
        for name in ("add_q_proj", "add_k_proj", "add_v_proj")
    ]
    assert torch.equal(torch.cat(parts), whole @ down)
    told = json.loads(open_local(tmp_path / "peft.safetensors").metadata["lora_adapter_metadata"])
    assert (told["transformer.r"], told["transformer.lora_alpha"]) == (6, 3)
    convert(tmp_path / "peft.safetensors", tmp_path / "back.safetensors")
    assert content(tmp_path / "back.safetensors") == content(tmp_path / "kohya.safetensors")


def test_an_update_of_the_query_alone_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(2)
    path = "transformer.transformer_blocks.0.attn.to_q"
    save_file(
        {f"{path}.lora_A.weight": torch.randn(3, 8), f"{path}.lora_B.weight": torch.randn(8, 3)},
        tmp_path / "peft.safetensors",
    )
    convert(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors")
    up = load_file(tmp_path / "kohya.safetensors")[
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"
    ]
    assert up.shape == (24, 3)
    assert not up[8:].any()
    convert(tmp_path / "kohya.safetensors", tmp_path / "back.safetensors", lora_dialect="Peft")
    assert content(tmp_path / "back.safetensors") == content(tmp_path / "peft.safetensors")


MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NAME = "lora_unet_" + MODULE.replace(".", "_")


def test_magnitudes_of_dora_go_both_ways(tmp_path: Path) -> None:
    tensors = {
        f"{NAME}.lora_down.weight": torch.ones(2, 8),
        f"{NAME}.lora_up.weight": torch.ones(6, 2),
        f"{NAME}.alpha": torch.tensor(1.0),
        f"{NAME}.dora_scale": torch.arange(6.0).reshape(6, 1),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    convert(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors", lora_dialect="Peft")
    peft = load_file(tmp_path / "peft.safetensors")
    assert torch.equal(peft[f"unet.{MODULE}.lora_magnitude_vector"], torch.arange(6.0))
    told = json.loads(open_local(tmp_path / "peft.safetensors").metadata["lora_adapter_metadata"])
    assert told["unet.use_dora"] is True
    convert(tmp_path / "peft.safetensors", tmp_path / "back.safetensors")
    assert content(tmp_path / "back.safetensors") == content(tmp_path / "kohya.safetensors")


def test_a_dora_of_diffusers_comes_back_as_it_was(layouts: dict[str, Path], tmp_path: Path) -> None:
    """Convolutions included, whose magnitudes have ones around them."""
    pipe = DiffusionPipeline.from_pretrained(layouts["sd15"])
    pipe.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "conv1"], use_dora=True, init_lora_weights=False)
    )
    pipe.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        **_collate_lora_metadata({"unet": pipe.unet}),
    )  # fmt: skip
    source = tmp_path / "pytorch_lora_weights.safetensors"
    assert any("magnitude" in name for name in load_file(source))
    convert(source, tmp_path / "kohya.safetensors")
    convert(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors", lora_dialect="Peft")
    assert content(tmp_path / "peft.safetensors") == content(source)


def test_sdxl_updates_with_the_names_of_its_single_file_are_read(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    """By the published UNet, or by the very model where one is merged into."""
    torch.manual_seed(2)
    published = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{published}.lora_down.weight": torch.ones(2, 640),
         f"{published}.lora_up.weight": torch.ones(640, 2)},
        tmp_path / "published.safetensors",
    )  # fmt: skip
    convert(tmp_path / "published.safetensors", tmp_path / "peft.safetensors",
            lora_dialect="Peft", variant="sdxl")  # fmt: skip
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert f"{path}.lora_A.weight" in load_file(tmp_path / "peft.safetensors")
    small = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    save_file({f"{small}.lora_down.weight": down, f"{small}.lora_up.weight": up},
              tmp_path / "small.safetensors")  # fmt: skip
    update = Merged(open_local(tmp_path / "small.safetensors"))
    convert(layouts["sdxl"], tmp_path / "merged.safetensors", merge_loras=(update,))
    convert(layouts["sdxl"], tmp_path / "plain.safetensors")
    base, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "merged"))
    name = "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
    assert torch.allclose(found[name], base[name] + up @ down, atol=1e-6)
    assert {key for key in base if not torch.equal(base[key], found[key])} == {name}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alpha_keeps_its_value_and_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        f"{NAME}.lora_down.weight": torch.ones(4, 8).half(),
        f"{NAME}.lora_up.weight": torch.ones(6, 4).half(),
        f"{NAME}.alpha": torch.tensor(0.75, dtype=dtype),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    convert(tmp_path / "kohya.safetensors", tmp_path / "peft.safetensors", lora_dialect="Peft")
    told = json.loads(open_local(tmp_path / "peft.safetensors").metadata["lora_adapter_metadata"])
    assert told["unet.lora_alpha"] == 0.75
    convert(tmp_path / "peft.safetensors", tmp_path / "back.safetensors")
    assert content(tmp_path / "back.safetensors") == content(tmp_path / "kohya.safetensors")


PAIR = {f"{NAME}.lora_down.weight": (2, 8), f"{NAME}.lora_up.weight": (6, 2)}


@pytest.mark.parametrize(
    ("shapes", "said", "reason"),
    [
        ({**PAIR, f"{NAME}.hada_w1_a": (2, 2)}, "hada", "UnsupportedLora"),
        ({**PAIR, f"{NAME}.lokr_w1": (2, 2)}, "lokr", "UnsupportedLora"),
        ({**PAIR, f"{NAME}.lora_mid.weight": (2, 2, 3, 3)}, "lora_mid", "UnsupportedLora"),
        ({**PAIR, f"{NAME}.diff_b": (6,)}, "diff", "UnsupportedLora"),
        (
            {"lora_unet_???.lora_down.weight": (2, 8), "lora_unet_???.lora_up.weight": (6, 2)},
            r"lora_unet_\?\?\?",
            "UnknownTensor",
        ),
        ({**PAIR, "emb_params": (2, 8)}, "emb_params", "UnknownTensor"),
        ({f"{NAME}.lora_down.weight": (2, 8)}, "lacks its up", "MissingTensor"),
        ({**PAIR, f"{NAME}.lora_up.weight": (6, 3)}, "no low-rank update", "WrongShape"),
        ({**PAIR, f"{NAME}.alpha": (2,)}, "alpha is no finite number", "BadAlpha"),
    ],
)
def test_what_is_no_lora_is_refused_by_name(
    shapes: dict[str, tuple[int, ...]], said: str, reason: str, tmp_path: Path
) -> None:
    save_file({k: torch.zeros(v) for k, v in shapes.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=said) as error:
        convert(tmp_path / "bad.safetensors", tmp_path / "out.safetensors", lora_dialect="Peft")
    assert error.value.reason == reason


def test_alpha_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = {k: torch.zeros(v) for k, v in PAIR.items()}
    tensors[f"{NAME}.alpha"] = torch.tensor(float("nan"))
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match="finite"):
        convert(tmp_path / "bad.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (dense_flux(), "WrongFamily"),
        (
            {"lora_unet_mid_block_attentions_9_proj_in.lora_down.weight": torch.ones(2, 8),
             "lora_unet_mid_block_attentions_9_proj_in.lora_up.weight": torch.ones(6, 2)},
            "WrongFamily",
        ),
        (
            {f"{NAME}.lora_down.weight": torch.ones(2, 999),
             f"{NAME}.lora_up.weight": torch.ones(6, 2)},
            "WrongFamily",
        ),
        (
            {f"{NAME}.lora_down.weight": torch.ones(2, 16),
             f"{NAME}.lora_up.weight": torch.ones(16, 2), f"{NAME}.dora_scale": torch.ones(16, 1)},
            "UnsupportedLora",
        ),
        ({"unet": torch.ones(1)}, "UnknownFamily"),
    ],
)  # fmt: skip
def test_updates_that_cannot_be_merged_are_refused(
    layouts: dict[str, Path], tensors: Tensors, reason: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "update.safetensors")
    with pytest.raises(WorkerError) as error:
        convert(
            layouts["sd15"], tmp_path / "merged",
            merge_loras=(Merged(open_local(tmp_path / "update.safetensors")),),
        )  # fmt: skip
    assert error.value.reason == reason


def test_a_pipeline_is_no_update(layouts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a Pipeline, not a LoRA"):
        convert(layouts["sd15"], tmp_path / "merged",
                merge_loras=(Merged(open_local(layouts["sd15"])),))  # fmt: skip
