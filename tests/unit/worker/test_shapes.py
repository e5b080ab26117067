import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_api.artifacts import Artifact
from kubebooth_store import fetch
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.prepare.render import render
from kubebooth_trainer.prepare.shapes import Shape, cut_of, shapes_of
from PIL import Image

from tests.unit.worker.conftest import Booth
from tests.unit.worker.corpus import encoded, exif, picture

BUCKETS = {"buckets": {"step": 16, "maxAspectRatio": 2.0}, "minImages": 1, "minEdge": 16}


@settings(deadline=None)
@given(
    resolution=st.integers(2, 32).map(lambda n: n * 64),
    step=st.sampled_from([8, 16, 64, 128]),
    limit=st.floats(1, 4),
)
def test_buckets_keep_area_step_and_ratio(resolution: int, step: int, limit: float) -> None:
    shapes = shapes_of(resolution, step=step, max_aspect_ratio=limit)
    assert Shape(resolution, resolution) in shapes
    assert len(set(shapes)) == len(shapes)
    for shape in shapes:
        assert shape.height * shape.width <= resolution**2
        assert max(shape.height, shape.width) <= limit * min(shape.height, shape.width)
        assert Shape(shape.width, shape.height) in shapes
        if shape.height != shape.width:
            assert shape.height % step == shape.width % step == 0


def test_the_buckets_of_sdxl_are_those_people_know() -> None:
    shapes = {(s.width, s.height) for s in shapes_of(1024, step=64, max_aspect_ratio=2.0)}
    assert {(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (1344, 768)} <= shapes


@settings(deadline=None)
@given(
    height=st.integers(16, 5000), width=st.integers(16, 5000), resolution=st.sampled_from([64, 512])
)
def test_a_cut_is_inside_central_and_of_the_ratio_of_its_shape(
    height: int, width: int, resolution: int
) -> None:
    shapes = shapes_of(resolution, step=16, max_aspect_ratio=3.0)
    cut = cut_of(height, width, shapes)
    assert 0 <= cut.left <= cut.left + cut.width <= width
    assert 0 <= cut.top <= cut.top + cut.height <= height
    assert abs(width - cut.width - 2 * cut.left) <= 1
    assert abs(height - cut.height - 2 * cut.top) <= 1
    assert cut.width == width or cut.height == height
    pixel = 1 / min(cut.width, cut.height)
    wanted = math.log(cut.shape.width / cut.shape.height)
    assert abs(math.log(cut.width / cut.height) - wanted) <= 1.5 * pixel
    nearest = min(abs(math.log(s.width / s.height) - math.log(width / height)) for s in shapes)
    assert abs(wanted - math.log(width / height)) == pytest.approx(nearest)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_gets_the_cut_of_the_upright_one(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(
        np.random.default_rng(3).integers(0, 255, (150, 61, 3), dtype=np.uint8)
    )
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each turn
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    (tmp_path / "a.png").write_bytes(encoded(upright, "PNG"))
    (tmp_path / "b.png").write_bytes(encoded(stored, "PNG", exif=exif(orientation)))
    shapes = shapes_of(64, step=16, max_aspect_ratio=2.0)
    plain, turned = (render(tmp_path / n, shapes=shapes, min_edge=1) for n in ("a.png", "b.png"))
    assert plain.cut == turned.cut
    assert plain.original == turned.original == (150, 61)
    assert plain.image.size == turned.image.size == (48, 80)
    assert np.abs(np.asarray(plain.image, int) - np.asarray(turned.image, int)).max() <= 1


def test_pictures_keep_their_shape_and_the_snapshot_tells_how_they_were_cut(
    booth: Booth, tmp_path: Path
) -> None:
    from kubebooth_trainer.train.dataset import open_picture, read_snapshot

    for name, size in (("square", (100, 100)), ("tall", (100, 160)), ("wide", (400, 100))):
        booth.upload(f"{name}.png", encoded(picture(1, size=size), "PNG"))
    outcome = booth.prepare(preprocess=BUCKETS)
    told = {row["source"]: row["geometry"] for row in booth.dataset(outcome)["images"]}
    assert told == {
        "square.png": {"original": [100, 100], "crop": [0, 0], "target": [64, 64]},
        "tall.png": {"original": [160, 100], "crop": [0, 1], "target": [80, 48]},
        "wide.png": {"original": [100, 400], "crop": [0, 56], "target": [48, 80]},
    }
    assert "in 3 shapes" in outcome.message
    folder = tmp_path / "snapshot"
    fetch(booth.store, booth.store.key_of(outcome.dataset.uri), folder)
    for one in read_snapshot(folder, resolution=64).pictures:
        height, width = one.geometry.target
        assert open_picture(one.read(), name=one.name, size=one.size).size == (width, height)


def test_white_stays_white_to_the_edge_of_every_bucket(tmp_path: Path) -> None:
    for number, size in enumerate([(201, 333), (333, 201), (97, 500), (640, 479), (100, 101)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, "white").save(path)
        made = render(path, shapes=shapes_of(64, step=8, max_aspect_ratio=3.0), min_edge=1)
        assert made.image.getextrema() == ((255, 255),) * 3


def test_a_picture_smaller_than_its_bucket_is_named(booth: Booth) -> None:
    booth.upload("small.png", encoded(picture(1, size=(70, 40)), "PNG"))
    outcome = booth.prepare(preprocess=BUCKETS)
    assert outcome.dataset.worst[0].file == "small.png"
    assert "is 70x40 pixels and was enlarged to 80x48" in outcome.dataset.worst[0].reason


def test_a_step_that_flux_cannot_pack_is_refused(booth: Booth) -> None:
    from kubebooth_trainer.prepare.stage import _shapes

    flux = {"baseModel": {"variant": "flux-dev"}}
    run = booth.run(preprocess={"buckets": {"step": 8}}, **flux)
    with pytest.raises(ConfigurationError, match=r"preprocess\.buckets\.step: 8 .* multiple of 16"):
        _shapes(run)


def given_pictures(booth: Booth, artifact: Artifact | None) -> list[dict[str, Any]]:
    assert artifact is not None
    key = booth.store.key_of(artifact.uri)
    told = json.loads(booth.store.read(f"{key}/dataset.json", max_bytes=1 << 20))
    rows: list[dict[str, Any]] = told["images"]
    return rows


def test_class_images_are_checked_and_published_in_the_shapes_of_the_dataset(booth: Booth) -> None:
    booth.upload("tall.png", encoded(picture(1, size=(100, 160)), "PNG"))
    for seed, size in ((5, (100, 100)), (6, (300, 100))):
        booth.store.write(f"people/{seed}.png", encoded(picture(seed, size=size), "PNG"))
    booth.store.write("people/5.txt", b"a person in red")
    outcome = booth.prepare(preprocess=BUCKETS, classSources=[{"store": {"key": "people"}}])
    rows = given_pictures(booth, outcome.class_images)
    assert [row["geometry"]["target"] for row in rows] == [[80, 48], [80, 48]]
    assert [row["prompt"] for row in rows] == ["a person in red", ""]
    assert [row["source"] for row in rows] == ["class image 5.png", "class image 6.png"]
    assert outcome.dataset.images == 1
    assert "2 class images" in outcome.message
    assert outcome.concept_images is None


def test_pictures_of_the_concept_stage_are_published_with_their_captions(booth: Booth) -> None:
    booth.upload_pictures(1)
    for seed in (7, 8):
        booth.store.write(f"styles/{seed}.png", encoded(picture(seed), "PNG"))
    booth.store.write("styles/8.txt", b"oil on canvas")
    outcome = booth.prepare(conceptSources=[{"store": {"key": "styles"}}])
    rows = given_pictures(booth, outcome.concept_images)
    assert [row["prompt"] for row in rows] == ["", "oil on canvas"]
    assert "empty prompt" in outcome.dataset.worst[0].reason
    assert outcome.dataset.worst[0].file == "concept image 7.png"


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("classSources", "training.priorPreservation.sources"),
        ("conceptSources", "training.conceptStage.sources"),
    ],
)
def test_given_pictures_that_cannot_be_used_are_named_with_their_field(
    booth: Booth, field: str, named: str
) -> None:
    booth.upload_pictures(1)
    with pytest.raises(DataError, match=rf"{named}: there is no usable picture of 0"):
        booth.prepare(**{field: [{"store": {"key": "nowhere"}}]})
    url = [{"url": {"href": "https://example.org/a.zip"}}]
    with pytest.raises(ConfigurationError, match=rf"{named}\[0\]\.url"):
        booth.prepare(**{field: url})
    booth.store.write("given/broken.jpg", encoded(picture(7), "JPEG")[:200])
    with pytest.raises(DataError, match=r"(class|concept) image broken\.jpg is cut off"):
        booth.prepare(**{field: [{"store": {"key": "given"}}]})
