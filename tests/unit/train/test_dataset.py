import json
from pathlib import Path

import pytest
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.train.dataset import open_square, read_snapshot
from PIL import Image

GOOD = {
    "version": 1,
    "resolution": 64,
    "concepts": [{"name": "s", "token": "sks", "className": "dog", "repeats": 2}],
    "images": [
        {"file": "images/0000.png", "concept": "s", "prompt": "sks dog in snow", "caption": True,
         "source": "my dog.jpg", "sha256": "0" * 64},
        {"file": "images/0001.png", "concept": "s", "prompt": "photo of sks dog", "caption": False,
         "source": "other.jpg", "sha256": "0" * 64},
    ],
}  # fmt: skip


def written(folder: Path, told: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


def test_a_snapshot_tells_pictures_prompts_and_what_calls_the_subject(tmp_path: Path):
    snapshot = read_snapshot(written(tmp_path, GOOD), resolution=64)
    assert [p.name for p in snapshot.pictures] == ["my dog.jpg", "other.jpg"]
    assert [p.repeats for p in snapshot.pictures] == [2, 2]
    assert snapshot.instance_prompts == ("photo of sks dog",)
    assert snapshot.class_names == ("dog",)


def test_a_subject_with_captions_only_is_called_by_token_and_class(tmp_path: Path):
    told = {**GOOD, "images": GOOD["images"][:1]}
    snapshot = read_snapshot(written(tmp_path, told), resolution=64)
    assert snapshot.instance_prompts == ("sks dog",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version"),
        ({"images": []}, "images"),
        ({"resolution": 128}, "128 px"),
        ({"images": [{**GOOD["images"][0], "file": "../../etc/passwd"}]}, "file"),
        ({"images": [{**GOOD["images"][0], "concept": "nobody"}]}, "no concept"),
    ],
)
def test_a_wrong_snapshot_is_refused_with_its_field(tmp_path: Path, change, said: str):
    with pytest.raises(DataError, match=said):
        read_snapshot(written(tmp_path, {**GOOD, **change}), resolution=64)


def test_a_missing_snapshot_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        read_snapshot(tmp_path, resolution=64)


def test_a_picture_of_another_size_or_kind_is_named(tmp_path: Path):
    Image.new("RGB", (32, 64)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"holiday\.jpg: 32x64"):
        open_square(tmp_path / "a.png", name="holiday.jpg", resolution=64)
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"b\.png: not a sound PNG"):
        open_square(tmp_path / "b.png", name="b.png", resolution=64)
