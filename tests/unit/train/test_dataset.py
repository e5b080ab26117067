import json
from pathlib import Path

import pytest
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families.door import Geometry
from kubebooth_trainer.train.dataset import (
    Picture,
    hold_out,
    open_picture,
    read_snapshot,
    uncut,
)
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
        ({"version": 3}, "version"),
        ({"images": []}, "images"),
        ({"resolution": 128}, "128 px"),
        ({"images": [{**GOOD["images"][0], "file": "../../etc/passwd"}]}, "file"),
        ({"images": [{**GOOD["images"][0], "concept": "nobody"}]}, "no concept"),
        (
            {
                "images": [
                    {
                        **GOOD["images"][0],
                        "geometry": {"original": [9, 9], "crop": [0, 0], "target": [128, 64]},
                    }
                ]
            },
            "64x128 px.*area is at most",
        ),
        (
            {
                "images": [
                    {
                        **GOOD["images"][0],
                        "geometry": {"original": [9, 9], "crop": [-1, 0], "target": [64, 64]},
                    }
                ]
            },
            "crop",
        ),
    ],
)
def test_a_wrong_snapshot_is_refused_with_its_field(tmp_path: Path, change, said: str):
    with pytest.raises(DataError, match=said):
        read_snapshot(written(tmp_path, {**GOOD, **change}), resolution=64)


def test_a_missing_snapshot_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        read_snapshot(tmp_path, resolution=64)


def test_the_second_version_tells_how_each_picture_was_cut_out(tmp_path: Path):
    cut = {"original": [300, 200], "crop": [8, 0], "target": [80, 48]}
    images = [{**GOOD["images"][0], "geometry": cut}, GOOD["images"][1]]
    told = {**GOOD, "version": 2, "images": images}
    first, second = read_snapshot(written(tmp_path, told), resolution=64).pictures
    assert first.geometry == Geometry(original=(300, 200), crop=(8, 0), target=(80, 48))
    assert first.size == (80, 48)
    assert second.geometry == uncut((64, 64))


def test_a_picture_of_another_size_or_kind_is_named(tmp_path: Path):
    Image.new("RGB", (32, 64)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with pytest.raises(DataError, match=r"holiday\.jpg: 32x64 px instead of 64x64"):
        open_picture(data, name="holiday.jpg", size=(64, 64))
    with pytest.raises(DataError, match=r"b\.png: not a sound PNG"):
        open_picture(b"GIF89a", name="b.png", size=(64, 64))
    assert open_picture(data, name="a.png", size=(64, 32)).size == (32, 64)
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read"):
        Picture(tmp_path / "gone.png", "", "gone.jpg", uncut((64, 64))).read()


def pictures(folder: Path, contents: dict[str, str]) -> list[Picture]:
    """Pictures by name of the given content, of the concept that their name begins with."""
    for name, content in contents.items():
        (folder / name).write_text(content)
    return [Picture(folder / n, n, n, uncut((64, 64)), concept=n[0]) for n in contents]


def test_held_out_pictures_are_chosen_by_seed_and_content_and_never_trained_on(tmp_path: Path):
    all_of_them = pictures(tmp_path, {f"a{n}": f"content {n}" for n in range(12)})
    training, held = hold_out(all_of_them, images=3, seed=7)
    assert len(held) == 3
    assert {p.name for p in training} | {p.name for p in held} == {p.name for p in all_of_them}
    assert not {p.name for p in training} & {p.name for p in held}
    assert training == tuple(p for p in all_of_them if p in training)
    backwards = hold_out(list(reversed(all_of_them)), images=3, seed=7)[1]
    assert backwards == held
    others = {tuple(p.name for p in hold_out(all_of_them, images=3, seed=s)[1]) for s in range(5)}
    assert len(others) > 1


def test_a_twin_of_a_held_out_picture_is_not_trained_on_either(tmp_path: Path):
    twins = pictures(tmp_path, {"a1": "same", "a2": "same", "a3": "other"})
    halves = [hold_out(twins, images=1, seed=seed) for seed in range(8)]
    assert {tuple(p.name for p in held) for _, held in halves} == {("a1",), ("a3",)}
    for training, held in halves:
        assert [p.name for p in training] == (["a3"] if held[0].name == "a1" else ["a1", "a2"])


def test_every_concept_keeps_a_picture_to_train_on(tmp_path: Path):
    two = pictures(tmp_path, {"a1": "1", "b1": "2", "b2": "3"})
    for seed in range(6):
        training, held = hold_out(two, images=1, seed=seed)
        assert {p.concept for p in training} == {"a", "b"}
        assert held[0].concept == "b"
    with pytest.raises(ConfigurationError, match="hold out at most 1, or upload more"):
        hold_out(two, images=2, seed=0)
