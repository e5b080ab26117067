"""Layouts as the hub has them are read, and layouts that every reader knows are written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import files, writing
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny.models import write_model
from tests.unit.families.reference import opened

UNET = "unet/diffusion_pytorch_model"
TEXT = "text_encoder/model"
VARIANTS = ("sd15", "sd21-512", "sd21-768", "sdxl")


def cut_into_shards(folder: Path, name: str, *, suffix: str = "") -> None:
    """Split a weight file in two under an index, as large components are published."""
    whole = folder / f"{name}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    keys = sorted(tensors)
    stem, table = Path(name).name, {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        shard = f"{stem}{suffix}-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, whole.parent / shard)
        table |= dict.fromkeys(part, shard)
    index = whole.parent / f"{stem}.safetensors.index{suffix}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))


def tensors_of(folder: Path, component: str) -> dict[str, torch.Tensor]:
    return dict(files.weight_files(folder, component).tensors())


@pytest.mark.parametrize("suffix", ["", ".fp16"])
def test_weights_in_several_files_are_read_and_written_as_the_same_model(
    tmp_path: Path, suffix: str
):
    base = write_model(tmp_path / "base", "sd15")
    before = {name: tensors_of(base, name) for name in ("unet", "vae", "text_encoder")}
    cut_into_shards(base, UNET, suffix=suffix)
    cut_into_shards(base, "vae/diffusion_pytorch_model", suffix=suffix)
    model = opened(base, "sd15").model if not suffix else None
    if model is None:
        writing.write_layout(base, tmp_path / "out", trained={}, precision="Keep")
    else:
        model.write(tmp_path / "out", precision="Keep")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    for name in ("unet", "vae"):
        ours = getattr(pipe, name).state_dict()
        assert ours.keys() == before[name].keys()
        assert all(torch.equal(ours[key], t) for key, t in before[name].items())
    assert not list((tmp_path / "out").rglob("*fp16*"))


def test_a_component_too_large_for_one_file_is_written_into_several(tmp_path: Path):
    base = write_model(tmp_path / "base", "sdxl")
    before = tensors_of(base, "unet")
    writing.write_layout(
        base, tmp_path / "out", trained={"unet": before}, precision="Fp16", shard_bytes=300_000
    )
    names = sorted(path.name for path in (tmp_path / "out" / "unet").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors"
    sizes = [(tmp_path / "out" / "unet" / name).stat().st_size for name in names]
    assert max(sizes) < 400_000
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path / "out", local_files_only=True, dtype=torch.float16
    )
    after = pipe.unet.state_dict()
    assert all(torch.equal(after[key], t.half()) for key, t in before.items())
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weight_map": {"a": "../../etc/passwd.safetensors"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "evil.bin"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "unet/gone.safetensors is missing"),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "JSON object"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, content: Any, says: str):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=says):
        files.weight_files(tmp_path, "unet")


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path):
    base = write_model(tmp_path / "base", "sd15")
    cut_into_shards(base, UNET)
    first, second = sorted((base / "unet").glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match="a second time"):
        opened_by_family(base)


def test_a_shard_that_lacks_tensors_is_refused(tmp_path: Path):
    base = write_model(tmp_path / "base", "sd15")
    cut_into_shards(base, UNET)
    _, second = sorted((base / "unet").glob("*.safetensors"))
    save_file(dict(list(load_file(second).items())[1:]), second)
    with pytest.raises(DataError, match="unet/ does not hold the weights"):
        opened_by_family(base)


def opened_by_family(base: Path) -> None:
    from kubebooth_trainer.families import sd

    from tests.unit.families.reference import CPU

    sd.load(base, placement=CPU, zero_terminal_snr=False, trained=frozenset())


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_has_the_keys_of_transformers_4_and_equal_weights(
    tmp_path: Path, variant: str
):
    both = opened(write_model(tmp_path / "base", variant), variant)
    both.model.write(tmp_path / "out", precision="Keep")
    for name in ("text_encoder", "text_encoder_2")[: 2 if variant == "sdxl" else 1]:
        with safe_open(tmp_path / "out" / name / "model.safetensors", "pt") as file:
            keys = list(file.keys())
            assert file.metadata() == {"format": "pt"}
        assert all(key.startswith(("text_model.", "text_projection.")) for key in keys)
        kind = CLIPTextModelWithProjection if name.endswith("2") else CLIPTextModel
        model, told = kind.from_pretrained(
            tmp_path / "out" / name, output_loading_info=True, local_files_only=True
        )
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        theirs = getattr(both.pipe, name).state_dict()
        assert all(torch.equal(theirs[key], t) for key, t in model.state_dict().items())
    again = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    for name in ("unet", "vae"):
        theirs = getattr(both.pipe, name).state_dict()
        ours = getattr(again, name).state_dict()
        assert all(torch.equal(ours[key], t) for key, t in theirs.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tokenizer_has_its_slow_files(tmp_path: Path, variant: str):
    base = write_model(tmp_path / "base", variant)
    places = sorted(path.name for path in base.glob("tokenizer*"))
    assert len(places) == (2 if variant == "sdxl" else 1)
    for place in places:
        for name in ("vocab.json", "merges.txt"):
            (base / place / name).unlink()
    writing.write_layout(base, tmp_path / "out", trained={}, precision="Keep")
    whole = write_model(tmp_path / "whole", variant)
    for place in places:
        for name in ("vocab.json", "merges.txt"):
            ours = (tmp_path / "out" / place / name).read_bytes()
            assert ours == (whole / place / name).read_bytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tokenizer_of_slow_files_alone_is_read(tmp_path: Path, variant: str):
    base = write_model(tmp_path / "base", variant)
    both = opened(base, variant)
    said = both.model.embed(["a photo of a dog"])
    for path in base.glob("tokenizer*/tokenizer.json"):
        path.unlink()
    again = opened(base, variant).model.embed(["a photo of a dog"])
    assert all(torch.equal(said[name], tensor) for name, tensor in again.items())


def test_the_projection_keeps_its_name():
    from kubebooth_trainer.families import clip

    named = clip.canonical({"a": torch.zeros(1), "text_projection.weight": torch.zeros(1)})
    assert set(named) == {"text_model.a", "text_projection.weight"}
