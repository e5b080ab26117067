import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.errors import ConfigurationError, DataError
from safetensors.torch import save_file

ROWS = {name: torch.full((3,), float(n)) for n, name in enumerate("abcd")}


def put(folder: Path, path: str, rows: Mapping[str, torch.Tensor] = ROWS) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".safetensors"):
        save_file(dict(rows), place)
    else:
        torch.save(dict(rows), place)


def put_sharded(
    folder: Path, *, suffix: str = ".safetensors", variant: str = "", old: bool = False
) -> list[str]:
    """Two parts and their index, as the newer or the older Diffusers names them."""
    names = list(ROWS)
    dot = f".{variant}" if variant else ""
    parts = [
        f"model-{n:05d}-of-00002{dot}{suffix}" if old else f"model{dot}-{n:05d}-of-00002{suffix}"
        for n in (1, 2)
    ]
    put(folder, parts[0], {name: ROWS[name] for name in names[:2]})
    put(folder, parts[1], {name: ROWS[name] for name in names[2:]})
    rows = {name: parts[0] if name in names[:2] else parts[1] for name in names}
    index = f"model{suffix}.index{dot}.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": rows}))
    return [*parts, index]


def values(opened: Opened, prefix: str = "") -> dict[str, bytes]:
    return {
        name.removeprefix(prefix): b"".join(s.source.read(s.start, s.length) for s in t.segments)
        for name, t in opened.tensors.items()
    }


WANTED = {name: row.numpy().tobytes() for name, row in ROWS.items()}


def test_components_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    put(tmp_path, "unet/diffusion_pytorch_model.safetensors")
    put(tmp_path, "text_encoder/pytorch_model.bin")
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "config.json").write_text('{"a": 1}')
    (tmp_path / ".cache").mkdir()
    put(tmp_path, ".cache/other.safetensors")
    opened = open_local(tmp_path)
    assert opened.form == "Diffusers"
    assert set(opened.tensors) == {f"{part}/{n}" for part in ("unet", "text_encoder") for n in ROWS}
    assert dict(opened.texts) == {"model_index.json": b"{}", "unet/config.json": b'{"a": 1}'}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_parts_are_brought_together(tmp_path: Path, suffix: str, variant: str, old: bool) -> None:
    put_sharded(tmp_path / "transformer", suffix=suffix, variant=variant, old=old)
    assert values(open_local(tmp_path), "transformer/") == WANTED


def test_plain_weights_are_taken_before_variants_and_safetensors_before_pickles(
    tmp_path: Path,
) -> None:
    other = {"x": torch.ones(1)}
    put(tmp_path, "unet/model.safetensors")
    put(tmp_path, "unet/model.bin", other)
    put(tmp_path, "unet/model.fp16.safetensors", other)
    put(tmp_path, "unet/model.non_ema.bin", other)
    opened = open_local(tmp_path)
    assert values(opened, "unet/") == WANTED
    assert any("3 other forms" in remark for remark in opened.remarks)
    assert set(open_local(tmp_path, weights="fp16").tensors) == {"unet/x"}


def test_the_only_variant_is_taken_and_one_of_several_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "unet/model.fp16.safetensors")
    assert values(open_local(tmp_path), "unet/") == WANTED
    put(tmp_path, "unet/model.ema.safetensors")
    with pytest.raises(DataError, match="--weights") as caught:
        open_local(tmp_path)
    assert caught.value.reason == "AmbiguousWeights"


def test_several_models_in_one_component_are_not_guessed_among(tmp_path: Path) -> None:
    put(tmp_path, "unet/one.safetensors")
    put(tmp_path, "unet/two.safetensors")
    with pytest.raises(DataError, match=r"one\.safetensors, unet/two\.safetensors"):
        open_local(tmp_path)


def test_the_usual_name_is_taken_before_the_same_model_for_other_programs(tmp_path: Path) -> None:
    put(tmp_path, "pytorch_lora_weights.safetensors")
    put(tmp_path, "sks-dog.safetensors", {"lora_unet_a.alpha": torch.ones(1)})
    opened = open_local(tmp_path)
    assert values(opened) == WANTED
    assert any("1 other" in remark for remark in opened.remarks)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_part_that_is_missing_is_named(tmp_path: Path, gone: int) -> None:
    names = put_sharded(tmp_path / "unet")
    (tmp_path / "unet" / names[gone]).unlink()
    with pytest.raises(DataError, match=r"model-0000|index") as caught:
        open_local(tmp_path)
    assert caught.value.reason == "MissingShard"


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "MalformedIndex"),
        ("[]", "MalformedIndex"),
        ("{}", "MalformedIndex"),
        ('{"weight_map": {}}', "MalformedIndex"),
        ('{"weight_map": {"a": 1}}', "MalformedIndex"),
        ("[" * 100_000, "MalformedIndex"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "MissingShard"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "MissingShard"),
        ('{"weight_map": {"zzz": "model-00001-of-00002.safetensors"}}', "MissingShard"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: str, reason: str) -> None:
    names = put_sharded(tmp_path / "unet")
    (tmp_path / "unet" / names[2]).write_text(index)
    (tmp_path / "unet" / names[1]).unlink()
    with pytest.raises(DataError) as caught:
        open_local(tmp_path)
    assert caught.value.reason == reason


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    names = put_sharded(tmp_path / "unet")
    put(tmp_path, f"unet/{names[1]}", ROWS)
    with pytest.raises(DataError, match="another part"):
        open_local(tmp_path)


def test_links_of_hub_caches_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "blobs/0123.safetensors")
    (tmp_path / "snapshot" / "unet").mkdir(parents=True)
    (tmp_path / "snapshot" / "unet" / "model.safetensors").symlink_to(
        tmp_path / "blobs" / "0123.safetensors"
    )
    assert values(open_local(tmp_path / "snapshot"), "unet/") == WANTED


def test_a_single_file_alone_in_a_folder_is_that_file(tmp_path: Path) -> None:
    put(tmp_path, "my-model.safetensors")
    (tmp_path / "my-model.yaml").write_text("model: {}")
    (tmp_path / "proof.json").write_text("{}")
    opened = open_local(tmp_path)
    assert (opened.form, values(opened)) == ("Safetensors", WANTED)
    assert dict(opened.texts) == {"my-model.yaml": b"model: {}"}


def test_a_component_alone_has_no_folder_in_its_names(tmp_path: Path) -> None:
    put(tmp_path, "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened = open_local(tmp_path)
    assert (opened.form, values(opened)) == ("Diffusers", WANTED)


def test_what_is_no_model_is_told_as_such(tmp_path: Path) -> None:
    for place, error in (("nowhere", ConfigurationError), ("empty", DataError)):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match="name "):
            open_local(tmp_path / place)
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match="no weights"):
        open_local(tmp_path / "empty")
