"""One model in every form that is found in the wild becomes the same layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.errors import DataError
from safetensors.torch import load_file, save_file

from tests.tiny import models
from tests.tiny.conversion import canonical, content, convert

Tensors = dict[str, torch.Tensor]
TEXT = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("wild") / "sd15", "sd15")


@pytest.fixture(scope="module")
def tensors(layout: Path) -> Tensors:
    path = layout.parent / "sd15.safetensors"
    convert(layout, path)
    return load_file(path)


def unprefixed(tensors: Tensors) -> Tensors:
    return {k.replace(TEXT, "cond_stage_model.transformer."): v for k, v in tensors.items()}


def with_ids(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    ids = torch.arange(77).unsqueeze(0).to(dtype)
    return lambda tensors: {**tensors, f"{TEXT}embeddings.position_ids": ids}


def with_averages(tensors: Tensors) -> Tensors:
    head = "model.diffusion_model."
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1
        for k, v in tensors.items()
        if k.startswith(head)
    }
    return {**tensors, **averages, "model_ema.num_updates": torch.tensor(3)}


def with_buffers(tensors: Tensors) -> Tensors:
    names = ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1",
             "logvar", "model_ema.decay")  # fmt: skip
    return {**tensors, **{name: torch.ones(3) for name in names}}


def flat_attention(tensors: Tensors) -> Tensors:
    """VAE attention as linear layers, as some merging tools leave it."""
    return {k: v[:, :, 0, 0].contiguous() if ".attn_1." in k and v.dim() == 4 else v
            for k, v in tensors.items()}  # fmt: skip


FORMS: dict[str, Callable[[Tensors], Tensors]] = {
    "text keys without prefix": unprefixed,
    "position ids": with_ids(torch.int64),
    "position ids in half precision": with_ids(torch.float16),
    "averaged weights": with_averages,
    "schedule buffers": with_buffers,
    "flat attention": flat_attention,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_single_file_in_the_wild_becomes_the_layout(
    layout: Path, tensors: Tensors, form: str, tmp_path: Path
) -> None:
    save_file(FORMS[form](tensors), tmp_path / "wild.safetensors")
    convert(tmp_path / "wild.safetensors", tmp_path / "layout", configs_from=open_local(layout))
    found = {k: v for k, v in content(tmp_path / "layout").items() if not k.startswith("kubebooth")}
    assert found == canonical(content(layout))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_becomes_the_layout(
    layout: Path, tensors: Tensors, nested: bool, zipped: bool, tmp_path: Path
) -> None:
    state: Any = with_ids(torch.int64)(tensors)
    torch.save(
        {"state_dict": state, "global_step": 7, "epoch": 1} if nested else state,
        tmp_path / "wild.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    convert(tmp_path / "wild.ckpt", tmp_path / "layout", configs_from=open_local(layout))
    found = {k: v for k, v in content(tmp_path / "layout").items() if not k.startswith("kubebooth")}
    assert found == canonical(content(layout))


@pytest.mark.parametrize("safe", [True, False])
def test_a_layout_in_shards_becomes_the_single_file(
    layout: Path, tensors: Tensors, safe: bool, tmp_path: Path
) -> None:
    pipe = DiffusionPipeline.from_pretrained(layout)
    pipe.save_pretrained(tmp_path / "shards", safe_serialization=True, max_shard_size="100KB")
    assert list((tmp_path / "shards/unet").glob("*.index.json"))
    if not safe:
        pickled(tmp_path / "shards/unet")
    convert(tmp_path / "shards", tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in found)


def pickled(folder: Path) -> None:
    """Shards as `.bin` files, which no writer of today makes any more."""
    index = next(folder.glob("*.index.json"))
    told = json.loads(index.read_text())
    rows = {k: v.replace(".safetensors", ".bin") for k, v in told["weight_map"].items()}
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    index.unlink()
    told["weight_map"] = rows
    (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(told))


def test_a_shard_that_is_missing_is_named(layout: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(layout)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    gone = sorted((tmp_path / "shards/unet").glob("*-of-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(DataError, match=gone.name) as error:
        convert(tmp_path / "shards", tmp_path / "one.safetensors")
    assert error.value.reason == "MissingShard"
    assert not (tmp_path / "one.safetensors").exists()


def test_a_strided_checkpoint_is_laid_out_again(
    layout: Path, tensors: Tensors, tmp_path: Path
) -> None:
    """Transposed views and views into a larger storage, as torch pickles them."""
    name = "model.diffusion_model.time_embed.0.weight"
    state = dict(tensors)
    state[name] = tensors[name].T.contiguous().T
    assert not state[name].is_contiguous()
    shared = torch.cat([torch.zeros(5), tensors["first_stage_model.quant_conv.bias"]])
    state["first_stage_model.quant_conv.bias"] = shared[5:]
    torch.save(state, tmp_path / "wild.ckpt")
    convert(tmp_path / "wild.ckpt", tmp_path / "layout", configs_from=open_local(layout))
    assert {k: v for k, v in content(tmp_path / "layout").items()
            if not k.startswith("kubebooth")} == canonical(content(layout))  # fmt: skip
