import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubebooth_store import publish
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.prepare.base_model import verify
from kubebooth_trainer.prepare.safetensors_header import BadHeader, check

from tests.unit.worker.conftest import Booth
from tests.unit.worker.corpus import safetensors, tiny_model

UNET = "unet/diffusion_pytorch_model.safetensors"


def say(path: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        value = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**value, **changes}))

    return change


def put(path: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).write_bytes(data)

    return change


def drop(*paths: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in paths:
            (folder / path).unlink()

    return change


INPAINTING = say("unet/config.json", in_channels=9)
WIDE = safetensors({"a": [4]})


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (drop("model_index.json"), "BaseModelInvalid", "model_index.json is missing"),
        (put("model_index.json", b"{"), "BaseModelInvalid", "is not JSON"),
        (put("model_index.json", b"[]"), "BaseModelInvalid", "no JSON object"),
        (put("model_index.json", b"[" * 90_000), "BaseModelInvalid", "is not JSON"),
        (say("model_index.json", _class_name="FluxPipeline"), "VariantMismatch", "FluxPipeline"),
        (say("model_index.json", unet=["x", "Evil"]), "VariantMismatch", "unet 'Evil'"),
        (say("model_index.json", vae=None), "VariantMismatch", "vae nothing"),
        (drop("tokenizer/tokenizer.json"), "BaseModelInvalid", "tokenizer/ has neither"),
        (INPAINTING, "VariantMismatch", "in_channels 9 (an inpainting model)"),
        (say("vae/config.json", latent_channels=16), "VariantMismatch", "latent_channels 16"),
        (
            say("scheduler/scheduler_config.json", prediction_type="v_prediction"),
            "VariantMismatch",
            "predicts 'v_prediction', but sd15 is epsilon",
        ),
        (say("unet/config.json", cross_attention_dim=77), "BaseModelInvalid", "width 77"),
        (drop("scheduler/scheduler_config.json"), "BaseModelInvalid", "scheduler_config.json is"),
        (drop(UNET), "BaseModelInvalid", "unet/ has no .safetensors"),
        (put("unet/diffusion_pytorch_model.bin", b"x"), "UnsafeWeights", "pickled weights"),
        (put("model.ckpt", b"x"), "UnsafeWeights", "model.ckpt"),
        (put("unet/evil.py", b"x"), "UnsafeWeights", "must not bring code"),
        (put(UNET, b"PK\x03\x04 not tensors"), "BaseModelInvalid", "no safetensors file"),
        (put(UNET, WIDE[:-1]), "BaseModelInvalid", "cut off: 1 bytes of weights"),
        (put(UNET, WIDE + b"x"), "BaseModelInvalid", "1 bytes that belong to no tensor"),
        (put(UNET, b"abc"), "BaseModelInvalid", "too short"),
    ],
)
def test_a_model_that_is_not_what_was_asked_is_refused_with_evidence(
    booth: Booth, tmp_path: Path, change: Callable[[Path], None], reason: str, says: str
) -> None:
    folder = tiny_model(tmp_path / "other")
    change(folder)
    publish(booth.store, "models/other", folder, kind="model")
    with pytest.raises(DataError) as caught:
        verify(asking(booth, "models/other"), booth.store)
    assert caught.value.reason == reason
    assert says in caught.value.message
    assert "models/other" in caught.value.message


def asking(booth: Booth, key: str, variant: str = "sd15") -> Any:
    return booth.run(baseModel={"variant": variant, "source": {"store": {"key": key}}})


@pytest.mark.parametrize(
    ("width", "variant", "says"),
    [
        (768, "sd15", None),
        (1024, "sd21-512", None),
        (1024, "sd15", "cross_attention_dim 1024 is Stable Diffusion 2.x; sd15 has 768"),
        (2048, "sd15", "is SDXL"),
        (768, "sd21-512", "is Stable Diffusion 1.x"),
        (64, "sd15", None),
    ],
)
def test_widths_tell_the_variants_apart(
    booth: Booth, tmp_path: Path, width: int, variant: str, says: str | None
) -> None:
    publish(booth.store, "models/wide", tiny_model(tmp_path / "w", width=width), kind="model")
    if says is None:
        assert verify(asking(booth, "models/wide", variant), booth.store).name == "wide"
        return
    with pytest.raises(DataError) as caught:
        verify(asking(booth, "models/wide", variant), booth.store)
    assert says in caught.value.message


def test_v_prediction_is_asked_of_sd21_768(booth: Booth, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "v", width=1024)
    say("scheduler/scheduler_config.json", prediction_type="v_prediction")(folder)
    publish(booth.store, "models/v", folder, kind="model")
    assert verify(asking(booth, "models/v", "sd21-768"), booth.store).format == "Diffusers"
    with pytest.raises(DataError, match="v_prediction"):
        verify(asking(booth, "models/v", "sd21-512"), booth.store)


def test_a_missing_model_says_how_to_upload_one(booth: Booth) -> None:
    with pytest.raises(DataError, match="kubebooth upload FOLDER --model") as caught:
        verify(asking(booth, "models/nowhere"), booth.store)
    assert caught.value.reason == "BaseModelMissing"


def test_a_published_file_that_went_away_is_named(booth: Booth) -> None:
    (booth.root / "models/tiny" / UNET).unlink()
    with pytest.raises(DataError, match="is listed, but gone"):
        verify(asking(booth, "models/tiny"), booth.store)


def test_a_published_file_that_was_cut_is_named(booth: Booth) -> None:
    os.truncate(booth.root / "models/tiny" / UNET, 20)
    with pytest.raises(DataError, match="has 20 bytes, but was published with"):
        verify(asking(booth, "models/tiny"), booth.store)


def test_a_dataset_is_no_model(booth: Booth) -> None:
    booth.upload_pictures(1)
    snapshot = booth.store.key_of(booth.prepare().dataset.uri)
    with pytest.raises(DataError, match="is a published dataset, not a model"):
        verify(asking(booth, snapshot), booth.store)


def headed(header: Any, tail: int = 0) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + b"\x00" * tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 100),
        headed(b"[" * 99_999),
        headed([]),
        headed({}),
        headed({"__metadata__": {}}),
        headed({"a": 3}),
        headed({"a": {"dtype": "X", "shape": [], "data_offsets": [0, 0]}}),
        headed({"a": {"dtype": "U8", "shape": 3, "data_offsets": [0, 0]}}),
        headed({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}}),
        headed({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1),
        headed({"a": {"dtype": "U8", "shape": [1e9], "data_offsets": [0, 1]}}, 1),
        headed({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0]}}, 2),
        headed({"a": {"dtype": "U8", "shape": [2], "data_offsets": [5, 7]}}, 7),
        headed({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, 8),
        headed(
            {
                "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
            },
            3,
        ),
    ],
)
def test_a_lying_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        check(lambda start, length: data[start : start + length], size=len(data))


def test_an_honest_header_gives_its_shapes() -> None:
    data = safetensors({"a": [2, 3], "b": [], "c": [0]})
    shapes = check(lambda start, length: data[start : start + length], size=len(data))
    assert shapes == {"a": (2, 3), "b": (), "c": (0,)}


def test_a_model_that_was_fetched_is_checked_like_any_other(booth: Booth, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "brought")
    manifest = publish(booth.store, "models/fetched-0123456789ab", folder, kind="model")
    place = booth.store.uri_of("models/fetched-0123456789ab")
    fetched = {"name": "it", "uri": place, "digest": manifest.digest, "size": manifest.size_bytes}
    run = booth.run(baseModel={"variant": "sd15"}, fetched=fetched)
    assert verify(run, booth.store).digest == manifest.digest
    changed = booth.run(
        baseModel={"variant": "sd15"}, fetched={**fetched, "digest": f"sha256:{'0' * 64}"}
    )
    with pytest.raises(DataError, match="not what was fetched"):
        verify(changed, booth.store)
    wrong = booth.run(baseModel={"variant": "sd21-768"}, fetched=fetched)
    with pytest.raises(DataError) as caught:
        verify(wrong, booth.store)
    assert caught.value.reason == "VariantMismatch"


def test_more_pixels_than_a_variant_can_paint_are_refused(booth: Booth) -> None:
    run = booth.run(resolution=2048)
    with pytest.raises(ConfigurationError, match=r"training\.resolution: 2048 .* at most 1024"):
        verify(run, booth.store)
