"""The published LoRA files, read by diffusers, give what our own model gives."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.convert.keys import flux
from kubebooth_trainer.convert.keys.sizes import Config
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.train.dataset import Snapshot
from kubebooth_trainer.train.lora import LowRank
from kubebooth_trainer.train.lora_files import FOR_DIFFUSERS, About, write_lora
from kubebooth_trainer.train.lora_names import kohya_names
from kubebooth_trainer.train.refusals import FAMILIES
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny.folder_session import run_of_training
from tests.tiny.models import write_model

CPU = Placement(torch.device("cpu"), None)
FOR_UIS = "sks-dog.safetensors"
EVERYTHING = ["Attention", "FeedForward", "Convolution"]
PLAIN: dict[str, Any] = {"rank": 3, "alpha": 2, "targets": EVERYTHING, "convRank": 2}
FOR_FLUX: dict[str, Any] = {"rank": 3, "alpha": 2, "targets": ["Attention", "FeedForward"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {v: write_model(root / v, v) for v in ("sd15", "sd21-768", "sdxl", "flux-dev")}


def learned(base: Path, variant: str, lora: dict[str, Any]) -> tuple[Any, LowRank, Training]:
    """A model whose update has values everywhere."""
    training = Training.parse({"method": "LoRA", "lora": lora})
    load = FAMILIES[BASE_MODELS[variant].family]
    model = load(base, placement=CPU, zero_terminal_snr=False, trained=frozenset())
    weights = LowRank(model, ("textEncoder", "denoiser"), training=training)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for part in model.parts:
            for name, weight in weights.of(part).items():
                noise = torch.randn(weight.shape, generator=generator)
                if "magnitude" in name:
                    weight.mul_(1 + 0.2 * noise)
                else:
                    weight.add_(0.1 * noise)
    return model, weights, training


def write(folder: Path, model: Any, weights: LowRank, variant: str, training: Training) -> None:
    snapshot = Snapshot(pictures=(), instance_prompts=("sks dog",), class_names=("dog",))
    about = About(
        run_of_training(training, variant), snapshot, dict(model.parts["denoiser"].config)
    )
    write_lora(folder, weights.layers(), about, precision="Keep")


def denoised(network: Any, variant: str) -> Tensor:
    """What a denoiser says to fixed inputs."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config, more = network.config, {}
    if variant == "flux-dev":
        inputs = {
            "hidden_states": noise(1, 4, config.in_channels),
            "encoder_hidden_states": noise(1, 5, config.joint_attention_dim),
            "pooled_projections": noise(1, config.pooled_projection_dim),
            "timestep": torch.tensor([0.4]),
            "guidance": torch.tensor([1.0]) if config.guidance_embeds else None,
            "img_ids": torch.zeros(4, 3),
            "txt_ids": torch.zeros(5, 3),
        }
        return network(**inputs, return_dict=False)[0]
    if variant == "sdxl":
        wide = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
        more = {"added_cond_kwargs": {"text_embeds": noise(1, wide), "time_ids": sizes}}
    text = noise(1, 5, config.cross_attention_dim)
    return network(noise(1, 4, 8, 8), 500, text, return_dict=False, **more)[0]


def read(encoder: Any) -> Tensor:
    ids = torch.arange(77).unsqueeze(0) % 300
    return encoder(ids)[0]


def said(model: Mapping[str, Any], variant: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        for network in model.values():
            network.eval()
        return denoised(model["denoiser"], variant), read(model["textEncoder"])


def pipeline(base: Path) -> Any:
    return DiffusionPipeline.from_pretrained(base, local_files_only=True)


def parts_of(pipe: Any) -> dict[str, Any]:
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    return {"denoiser": denoiser, "textEncoder": pipe.text_encoder}


CASES = [
    ("sd15", PLAIN),
    ("sd15", {**PLAIN, "dora": True}),
    ("sd21-768", PLAIN),
    ("sdxl", PLAIN),
    ("sdxl", {**PLAIN, "dora": True}),
    ("flux-dev", FOR_FLUX),
]


@pytest.mark.parametrize(("variant", "lora"), CASES)
def test_diffusers_reads_its_file_as_our_model_computes_it(
    tmp_path: Path, bases: dict[str, Path], variant: str, lora: dict[str, Any]
):
    model, weights, training = learned(bases[variant], variant, lora)
    write(tmp_path / "lora", model, weights, variant, training)
    ours = said(model.parts, variant)
    pipe = pipeline(bases[variant])
    before = said(parts_of(pipe), variant)
    pipe.load_lora_weights(tmp_path / "lora", weight_name=FOR_DIFFUSERS)
    theirs = said(parts_of(pipe), variant)
    for one, other, plain in zip(ours, theirs, before, strict=True):
        assert not torch.allclose(one, plain, atol=1e-3)
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("variant", ["sd15", "sd21-768", "sdxl"])
def test_diffusers_reads_the_file_for_web_uis_as_our_model_computes_it(
    tmp_path: Path, bases: dict[str, Path], variant: str
):
    model, weights, training = learned(bases[variant], variant, PLAIN)
    write(tmp_path / "lora", model, weights, variant, training)
    ours = said(model.parts, variant)
    pipe = pipeline(bases[variant])
    pipe.load_lora_weights(tmp_path / "lora", weight_name=FOR_UIS)
    for one, other in zip(ours, said(parts_of(pipe), variant), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


def merged(model: Any) -> dict[str, Tensor]:
    """Weights of the denoiser with the update added by peft, by the names without it."""
    found = {}
    for path, layer in model.parts["denoiser"].named_modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
            found[path] = layer.get_base_layer().weight.detach()
    return found


def as_uis_do(weight: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    """A weight with its update, by the formulas of ComfyUI's and Forge's loaders."""
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    scale = tensors[f"{name}.alpha"].item() / down.shape[0]
    whole = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
    if f"{name}.dora_scale" not in tensors:
        return whole
    lengths = whole.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.dim() - 1))
    return whole * (tensors[f"{name}.dora_scale"] / lengths)


def test_web_uis_add_a_dora_as_our_model_computes_it(bases: dict[str, Path]):
    model, weights, _ = learned(bases["sd15"], "sd15", {**PLAIN, "dora": True})
    layers = [layer for layer in weights.layers() if layer.part == "denoiser"]
    tensors = kohya_names(layers, family="sd", config=model.parts["denoiser"].config)
    network = model.parts["denoiser"]
    plain = {layer.path: network.get_submodule(layer.path).weight.clone() for layer in layers}
    whole = merged(model)
    assert {weight.dim() for weight in whole.values()} == {2, 4}
    for path, weight in whole.items():
        theirs = as_uis_do(plain[path], tensors, "lora_unet_" + path.replace(".", "_"))
        torch.testing.assert_close(weight, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("targets", [["Attention"], ["Attention", "FeedForward"]])
def test_the_joined_layers_of_flux_hold_what_diffusers_layers_hold(
    bases: dict[str, Path], targets: list[str]
):
    lora = {**FOR_FLUX, "targets": targets}
    model, weights, _ = learned(bases["flux-dev"], "flux-dev", lora)
    layers = [layer for layer in weights.layers() if layer.part == "denoiser"]
    network = model.parts["denoiser"]
    tensors = kohya_names(layers, family="flux", config=network.config)
    plain = {name: module.weight.detach().clone() for name, module in network.named_modules()
             if isinstance(module, torch.nn.Linear) and "lora_" not in name}  # fmt: skip
    plain = {name.removesuffix(".base_layer"): weight for name, weight in plain.items()}
    whole = plain | merged(model)
    names = {name.rsplit(".lora_", 1)[0].removesuffix(".alpha") for name in tensors}
    assert "lora_unet_double_blocks_0_img_attn_qkv" in names
    assert "lora_unet_single_blocks_0_linear1" in names
    config = Config(dict(network.config), file="config.json")
    seen = set()
    for link in flux.links(flux.from_config(config)):
        name = "lora_unet_" + link.single.removesuffix(".weight").replace(".", "_")
        if name in names and link.single.endswith(".weight"):
            seen.add(name)
            parts = [part.name.removesuffix(".weight") for part in link.parts]
            theirs = as_uis_do(torch.cat([plain[part] for part in parts]), tensors, name)
            torch.testing.assert_close(torch.cat([whole[part] for part in parts]), theirs,
                                       atol=1e-5, rtol=1e-4)  # fmt: skip
    assert seen == {name for name in names if name.startswith("lora_unet_")}


def test_the_file_for_web_uis_says_what_it_is(tmp_path: Path, bases: dict[str, Path]):
    model, weights, training = learned(bases["sdxl"], "sdxl", PLAIN)
    write(tmp_path / "lora", model, weights, "sdxl", training)
    path = tmp_path / "lora" / FOR_UIS
    with safe_open(path, "pt") as file:
        told, names = file.metadata(), set(file.keys())
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    digest = hashlib.sha256(raw[8 + length :]).hexdigest()
    assert told["ss_network_module"] == "networks.lora"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("3", "2.0")
    assert json.loads(told["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert told["ss_base_model_version"] == "sdxl_base_v1-0"
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert told["modelspec.hash_sha256"] == f"0x{digest}"
    assert told["sshs_model_hash"] == digest
    assert told["modelspec.trigger_phrase"] == "sks dog"
    assert any(name.startswith("lora_te1_text_model_encoder_layers_0_") for name in names)
    assert any(name.startswith("lora_unet_input_blocks_") for name in names)
    assert os.stat(path).st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("variant", "prefix"), [("sd15", "lora_te_"), ("flux-dev", "lora_te1_")])
def test_text_encoder_names_have_the_text_model_in_them(
    tmp_path: Path, bases: dict[str, Path], variant: str, prefix: str
):
    model, weights, training = learned(bases[variant], variant, {"rank": 2})
    write(tmp_path / "lora", model, weights, variant, training)
    for_uis = [n for n in load_file(tmp_path / "lora" / FOR_UIS) if n.startswith("lora_te")]
    ours = [n for n in load_file(tmp_path / "lora" / FOR_DIFFUSERS) if n.startswith("text_")]
    assert for_uis
    assert all(name.startswith(f"{prefix}text_model_encoder_layers_") for name in for_uis)
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in ours)


def test_half_precision_is_written_where_it_is_asked_for(tmp_path: Path, bases: dict[str, Path]):
    model, weights, training = learned(bases["sd15"], "sd15", {"rank": 2})
    snapshot = Snapshot(pictures=(), instance_prompts=("!!",), class_names=())
    about = About(run_of_training(training, "sd15"), snapshot, model.parts["denoiser"].config)
    write_lora(tmp_path / "lora", weights.layers(), about, precision="Fp16")
    for name in ("subject.safetensors", FOR_DIFFUSERS):
        kinds = {tensor.dtype for tensor in load_file(tmp_path / "lora" / name).values()}
        assert kinds == {torch.float16}
