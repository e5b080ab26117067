import json
from pathlib import Path

import pytest
import torch
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.families.sd import load
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from tests.tiny.pipeline import write_tiny

CPU = Placement(torch.device("cpu"), None)


def opened(folder: Path):
    return load(folder, placement=CPU, zero_terminal_snr=False, trained=frozenset())


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("half") / "base", half=True)


@pytest.fixture
def written(half: Path, tmp_path: Path) -> Path:
    base = half
    (base / "unet" / "evil.bin").write_bytes(b"pickle")
    (base / "unet" / "evil.py").write_text("import os")
    opened(base).write(tmp_path / "out", precision="Keep")
    return tmp_path / "out"


def test_every_text_key_carries_the_prefix_that_all_readers_know(written: Path):
    with safe_open(written / "text_encoder" / "model.safetensors", "pt") as file:
        keys = list(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert keys
    assert all(key.startswith("text_model.") for key in keys)
    assert "text_model.embeddings.token_embedding.weight" in keys


def test_the_text_encoder_is_read_by_transformers_with_the_same_weights(half: Path, written: Path):
    model, told = CLIPTextModel.from_pretrained(
        written / "text_encoder", output_loading_info=True, local_files_only=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ours = opened(half).parts["textEncoder"].state_dict()
    assert all(torch.equal(ours[key], t.float()) for key, t in model.state_dict().items())


def test_keep_writes_the_dtype_of_the_base(written: Path):
    for name in (
        "unet/diffusion_pytorch_model",
        "text_encoder/model",
        "vae/diffusion_pytorch_model",
    ):
        tensors = load_file(written / f"{name}.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("Fp16", torch.float16), ("Bf16", torch.bfloat16), ("Fp32", torch.float32)],
)
def test_a_precision_applies_to_every_component(half: Path, tmp_path: Path, precision, dtype):
    opened(half).write(tmp_path / "out", precision=precision)
    for name in (
        "unet/diffusion_pytorch_model",
        "text_encoder/model",
        "vae/diffusion_pytorch_model",
    ):
        tensors = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {dtype}


def test_untrained_files_are_copied_byte_by_byte_and_pickles_and_code_never(
    half: Path, written: Path
):
    for name in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert (written / name).read_bytes() == (half / name).read_bytes()
    assert not list(written.rglob("*.bin"))
    assert not list(written.rglob("*.py"))


def test_the_slow_tokenizers_files_are_there_and_say_the_same(written: Path):
    vocabulary = json.loads((written / "tokenizer" / "vocab.json").read_text())
    fast = CLIPTokenizer.from_pretrained(written / "tokenizer", local_files_only=True)
    assert vocabulary == fast.get_vocab()
    assert (written / "tokenizer" / "merges.txt").read_text().startswith("#version")


def test_weights_without_the_prefix_are_read_as_well(half: Path, tmp_path: Path, written: Path):
    path = written / "text_encoder" / "model.safetensors"
    flat = {key.removeprefix("text_model."): t for key, t in load_file(path).items()}
    save_file(flat, path)
    one, other = opened(half).embed(["a dog"])["text"], opened(written).embed(["a dog"])["text"]
    assert torch.equal(one, other)


def test_the_old_names_of_the_vaes_attention_are_read(half: Path, written: Path):
    path = written / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for key, tensor in tensors.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key.replace(".to_out.0.", ".proj_attn.")] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path)
    picture = Image.new("RGB", (64, 64), (200, 30, 60))
    one, other = opened(half), opened(written)
    assert torch.equal(one.encode_picture(picture).mean, other.encode_picture(picture).mean)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model_index.json", b"[]", "JSON object"),
        ("model_index.json", b'{"_class_name": "FluxPipeline"}', "StableDiffusionPipeline"),
        ("unet/config.json", b"{", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", b"\x00" * 64, "not a sound safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", None, "safe_serialization"),
        ("text_encoder/config.json", b'{"hidden_size": 32}', "text_encoder/"),
        ("scheduler/scheduler_config.json", None, "scheduler_config.json is missing"),
        ("unet/config.json", b'{"block_out_channels": [8, 8]}', "unet/"),
    ],
)
def test_a_broken_base_model_is_named_by_file(written: Path, name: str, content, said: str):
    path = written / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened(written)


def test_nan_weights_in_the_base_are_named_by_key(written: Path):
    path = written / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"conv_in\.bias"):
        opened(written)
