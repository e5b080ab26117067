import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from kubebooth_store import Entry, Store, fetch, read_manifest
from kubebooth_trainer.errors import ConfigurationError, DataError, Preempted
from kubebooth_trainer.prepare.sources import find
from kubebooth_trainer.prepare.stage import prepare
from kubebooth_trainer.prepare.verdicts import Verdicts
from kubebooth_trainer.reporter import Reporter
from PIL import Image

from tests.unit.worker.conftest import UPLOADS, Booth
from tests.unit.worker.corpus import bad, encoded, good, picture


def test_a_snapshot_holds_what_training_reads(booth: Booth, tmp_path: Path) -> None:
    booth.upload_pictures(3)
    booth.upload("p1.txt", b"a sks cat on a sofa")
    outcome = booth.prepare()
    prefix = booth.store.key_of(outcome.dataset.uri)
    manifest = fetch(booth.store, prefix, tmp_path / "snapshot")
    assert manifest.kind == "dataset"
    assert manifest.digest == outcome.dataset.digest
    assert prefix == f"sessions/default/demo/datasets/{manifest.digest[7:19]}"
    told = json.loads((tmp_path / "snapshot/dataset.json").read_text())
    assert (told["version"], told["resolution"]) == (2, 64)
    assert told["concepts"] == [{"name": "cat", "token": "sks", "className": "cat", "repeats": 1}]
    assert [image["prompt"] for image in told["images"]] == [
        "sks cat",
        "a sks cat on a sofa",
        "sks cat",
    ]
    assert [image["caption"] for image in told["images"]] == [False, True, False]
    assert [image["source"] for image in told["images"]] == ["p0.png", "p1.png", "p2.png"]
    for image in told["images"]:
        file = tmp_path / "snapshot" / image["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == image["sha256"]
        with Image.open(file) as square:
            assert (square.mode, square.size) == ("RGB", (64, 64))
    with Image.open(tmp_path / "snapshot/contact-sheet.png") as sheet:
        assert sheet.width > 500
    assert (outcome.dataset.images, outcome.dataset.captioned) == (3, 1)
    assert outcome.dataset.size == manifest.size_bytes
    assert outcome.dataset.review_uri == f"{outcome.dataset.uri}/contact-sheet.png"
    assert outcome.base_model.format == "Diffusers"
    assert outcome.base_model.uri == booth.store.uri_of("models/tiny")


def test_the_same_input_gives_the_same_snapshot_and_uploads_nothing(booth: Booth) -> None:
    booth.upload_pictures(3)
    first = booth.prepare()
    before = {path: path.stat().st_mtime_ns for path in booth.root.rglob("*") if path.is_file()}
    second = booth.prepare()
    after = {path: path.stat().st_mtime_ns for path in booth.root.rglob("*") if path.is_file()}
    assert second == first
    assert after == before
    assert list(booth.workdir.iterdir()) == []


def test_another_prompt_or_picture_is_another_snapshot(booth: Booth) -> None:
    booth.upload_pictures(2)
    digests = {booth.prepare().dataset.digest}
    booth.upload("p1.txt", b"sks asleep")
    digests.add(booth.prepare().dataset.digest)
    booth.upload("p9.png", encoded(picture(9), "PNG"))
    digests.add(booth.prepare().dataset.digest)
    digests.add(booth.prepare(captions={"mode": "None"}).dataset.digest)
    assert len(digests) == 4


def test_every_bad_file_of_a_hostile_folder_is_named_and_the_good_ones_are_taken(
    booth: Booth,
) -> None:
    for case in [*bad(), *good()]:
        booth.upload(case.name, case.data)
    refused, taken = len(list(bad())), len(list(good()))
    outcome = booth.prepare(preprocess={"badFiles": "Exclude", "minImages": 1})
    assert outcome.dataset.images == taken
    assert outcome.dataset.rejected == refused
    assert len(outcome.dataset.worst) == 8
    sources = {image["source"] for image in booth.dataset(outcome)["images"]}
    assert "with [brackets] (1) $(x);.png" in sources
    assert not any("\u202e" in source for source in sources)


def test_bad_files_stop_the_session_and_are_all_named(booth: Booth) -> None:
    booth.upload_pictures(3)
    booth.upload("broken.jpg", encoded(picture(7), "JPEG")[:200])
    booth.upload("notes.md", b"# not a picture")
    with pytest.raises(DataError) as caught:
        booth.prepare()
    assert caught.value.reason == "BadFiles"
    assert caught.value.message.startswith("2 files cannot be used: broken.jpg is ")
    assert "notes.md is text" in caught.value.message
    assert "preprocess.badFiles: Exclude" in caught.value.message
    assert not list(booth.store.list("sessions/default/demo/datasets"))


def test_too_few_pictures_say_how_many_there_are(booth: Booth) -> None:
    booth.upload_pictures(2)
    booth.upload("broken.jpg", b"")
    with pytest.raises(DataError, match=r"2 usable pictures of 3.*minImages asks for 3") as caught:
        booth.prepare(preprocess={"badFiles": "Exclude", "minImages": 3})
    assert "broken.jpg is empty" in caught.value.message


def test_an_empty_folder_says_how_to_upload(booth: Booth) -> None:
    with pytest.raises(DataError, match="kubebooth upload FOLDER --session demo") as caught:
        booth.prepare()
    assert caught.value.reason == "NoPictures"
    assert f"/{UPLOADS}" in caught.value.message


def test_litter_is_passed_over(booth: Booth) -> None:
    booth.upload_pictures(2)
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "._p0.png",
        "__MACOSX/._p0.png",
        ".ipynb_checkpoints/p0-checkpoint.png",
        "sub/desktop.ini",
    ):
        booth.upload(name, b"\x00\x01")
    outcome = booth.prepare()
    assert (outcome.dataset.images, outcome.dataset.rejected) == (2, 0)
    assert outcome.dataset.worst == ()


def test_a_duplicate_does_what_its_policy_says(booth: Booth) -> None:
    booth.upload("a.png", encoded(picture(1), "PNG"))
    booth.upload("b.bmp", encoded(picture(1), "BMP"))
    booth.upload("c.png", encoded(picture(2), "PNG"))
    counts = {}
    for policy in ("Ignore", "Warn", "Exclude"):
        dataset = booth.prepare(preprocess={"minImages": 1, "duplicates": policy}).dataset
        told = [row.reason for row in dataset.worst]
        counts[policy] = (dataset.images, dataset.rejected, len(told))
        assert all(reason.startswith("shows the same pixels as a.png") for reason in told)
    assert counts == {"Ignore": (3, 0, 0), "Warn": (3, 0, 1), "Exclude": (2, 1, 1)}
    with pytest.raises(DataError, match=r"b\.bmp shows the same pixels as a\.png"):
        booth.prepare(preprocess={"minImages": 1, "duplicates": "Fail", "badFiles": "Exclude"})


def test_an_odd_caption_does_what_its_policy_says(booth: Booth) -> None:
    booth.upload_pictures(3)
    for name in ("p0", "p1"):
        booth.upload(f"{name}.txt", b"sks again")
    dataset = booth.prepare().dataset
    assert (dataset.images, dataset.rejected) == (3, 0)
    assert [(row.file, row.reason) for row in dataset.worst] == [
        ("p1.png", "has the same caption as p0.png; tell them apart")
    ]
    assert booth.prepare(captions={"lint": "Exclude"}).dataset.images == 2
    assert booth.prepare(captions={"lint": "Ignore"}).dataset.worst == ()
    with pytest.raises(DataError, match=r"captions\.lint to Warn"):
        booth.prepare(captions={"lint": "Fail"})


def test_a_small_picture_is_enlarged_with_a_word_about_it(booth: Booth) -> None:
    booth.upload("small.png", encoded(picture(1, size=(40, 50)), "PNG"))
    outcome = booth.prepare()
    assert "1 small picture enlarged" in outcome.message
    assert outcome.dataset.rejected == 0
    assert "enlarged to 64" in outcome.dataset.worst[0].reason
    with pytest.raises(DataError, match="40x50 pixels, but the shorter edge must have at least 41"):
        booth.prepare(preprocess={"minEdge": 41, "minImages": 1})


def test_a_caption_without_picture_is_pointed_out(booth: Booth) -> None:
    booth.upload_pictures(1)
    booth.upload("p0.TXT", b"upper case sks")
    booth.upload("lost.txt", b"nobody's")
    outcome = booth.prepare()
    assert outcome.dataset.captioned == 1
    assert [(row.file, row.reason.split(";")[0]) for row in outcome.dataset.worst] == [
        ("lost.txt", "is a caption without picture")
    ]


def test_a_caption_may_be_named_like_the_whole_file(booth: Booth) -> None:
    booth.upload_pictures(1)
    booth.upload("p0.png.txt", b"sks from the full name")
    outcome = booth.prepare()
    assert booth.dataset(outcome)["images"][0]["prompt"] == "sks from the full name"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfes\x00k\x00s\x00", "UTF-16"),
        (b"caf\xe9", "not UTF-8"),
        (b"sks\x00cat", "control characters"),
        (b"x" * 2049, "shorten the caption to 2048"),
        (b"x" * 9000, "shorten it to 2048 characters"),
    ],
)
def test_a_bad_caption_is_refused_by_name(booth: Booth, data: bytes, says: str) -> None:
    booth.upload_pictures(1)
    booth.upload("p0.txt", data)
    with pytest.raises(DataError, match=r"p0\.txt") as caught:
        booth.prepare()
    assert says in caught.value.message
    outcome = booth.prepare(preprocess={"badFiles": "Exclude", "minImages": 1})
    assert booth.dataset(outcome)["images"][0]["prompt"] == "sks cat"


def test_an_empty_caption_falls_back_to_the_instance_prompt(booth: Booth) -> None:
    booth.upload_pictures(1)
    booth.upload("p0.txt", b"\xef\xbb\xbf \n")
    outcome = booth.prepare()
    assert outcome.dataset.captioned == 0
    assert booth.dataset(outcome)["images"][0]["prompt"] == "sks cat"
    assert "empty caption" in outcome.dataset.worst[0].reason


def test_captions_are_ignored_on_request(booth: Booth) -> None:
    booth.upload_pictures(1)
    booth.upload("p0.txt", b"\xff")
    outcome = booth.prepare(captions={"mode": "None"})
    assert outcome.dataset.captioned == 0
    assert outcome.dataset.worst == ()


def test_several_concepts_come_in_the_order_of_their_names(booth: Booth) -> None:
    for folder, seed in (("pets/dog", 1), ("pets/dog", 2), ("pets/cat", 3), ("pets/cats", 4)):
        booth.store.write(f"{folder}/{seed}.png", encoded(picture(seed), "PNG"))
    concepts = [
        {
            "name": "dog",
            "token": "zwx",
            "className": "dog",
            "repeats": 2,
            "sources": [{"store": {"key": "pets/dog"}}],
        },
        {
            "name": "cat",
            "token": "sks",
            "className": "cat",
            "sources": [{"store": {"key": "pets/cat/"}}, {"store": {"key": "pets/cat/3.png"}}],
        },
    ]
    told = booth.dataset(booth.prepare(concepts=concepts))
    assert [concept["name"] for concept in told["concepts"]] == ["cat", "dog"]
    assert [(image["concept"], image["source"]) for image in told["images"]] == [
        ("cat", "3.png"),
        ("dog", "1.png"),
        ("dog", "2.png"),
    ]


def test_a_concept_without_pictures_is_named(booth: Booth) -> None:
    booth.store.write("pets/dog/1.png", encoded(picture(1), "PNG"))
    concepts = [
        {"name": name, "token": name, "sources": [{"store": {"key": f"pets/{name}"}}]}
        for name in ("dog", "owl")
    ]
    with pytest.raises(DataError, match="no usable picture for concept owl"):
        booth.prepare(concepts=concepts)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resolution": 60}, "resolution"),
        ({"resolution": 4096}, "resolution"),
        ({"preprocess": {"blur": "Fail"}}, "preprocess.blur: Fail"),
        ({"preprocess": {"watermarks": "Warn"}}, "preprocess.watermarks"),
        ({"captions": {"mode": "Model", "model": {"model": "x"}}}, "captions.mode"),
        ({"concepts": []}, "concepts"),
        ({"concepts": [{"name": "a", "token": "a"}, {"name": "b", "token": "b"}]}, "concepts"),
        ({"concepts": [{"name": "a", "token": "a"}, {"name": "a", "token": "b"}]}, "concepts"),
        (
            {
                "concepts": [
                    {
                        "name": "a",
                        "token": "a",
                        "sources": [{"url": {"href": "https://example.org/a.zip"}}],
                    }
                ]
            },
            "concepts[a].sources[0].url",
        ),
        (
            {"concepts": [{"name": "a", "token": "a", "sources": [{"store": {"key": "a/../b"}}]}]},
            "concepts[a].sources[0].store.key",
        ),
        (
            {
                "concepts": [
                    {
                        "name": "a",
                        "token": "a",
                        "sources": [{"store": {"key": "sessions/other/x/uploads"}}],
                    }
                ]
            },
            "another namespace",
        ),
        ({"baseModel": {"variant": "sdxl"}}, "baseModel.source"),
        ({"baseModel": {"variant": "sd15"}}, "baseModel.source"),
        (
            {"baseModel": {"variant": "sd15", "source": {"session": {"name": "x"}}}},
            "baseModel.source.session",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(
    booth: Booth, changes: dict[str, Any], field: str
) -> None:
    booth.upload_pictures(1)
    with pytest.raises(ConfigurationError) as caught:
        booth.prepare(**changes)
    assert field in caught.value.message


def test_links_on_disk_are_never_followed(booth: Booth, tmp_path: Path) -> None:
    booth.upload_pictures(2)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(66), "PNG"))
    os.symlink(secret, booth.root / UPLOADS / "link.png")
    os.symlink(tmp_path, booth.root / UPLOADS / "folder")
    told = booth.dataset(booth.prepare())
    assert [image["source"] for image in told["images"]] == ["p0.png", "p1.png"]


def test_a_name_that_no_store_key_can_have_is_named_with_its_cure(booth: Booth) -> None:
    booth.upload_pictures(1)
    (booth.root / UPLOADS / "two\nlines.png").write_bytes(b"x")
    with pytest.raises(DataError, match="rename the file"):
        booth.prepare()


def test_a_file_that_is_too_large_is_never_fetched(booth: Booth) -> None:
    booth.upload_pictures(1)
    with (booth.root / UPLOADS / "huge.png").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(DataError, match=r"huge\.png has 64 MiB; at most 64 MiB"):
        booth.prepare()


class Crowd:
    """A store that lists more files than anybody trains on."""

    uri = "file:///crowd"

    def list(self, prefix: str) -> Iterator[Entry]:
        """Ten thousand and one pictures."""
        for number in range(10_001):
            yield Entry(f"{prefix}/{number:05d}.png", 9, "tag", None)


def test_more_files_than_a_session_may_have_are_refused(booth: Booth) -> None:
    with pytest.raises(DataError, match="more than 10000 files"):
        find(booth.run(), cast(Store, Crowd()), Verdicts())


def test_a_polite_stop_ends_preparing_as_preempted(booth: Booth) -> None:
    booth.upload_pictures(2)
    reporter = Reporter(first_stage="Prepare")
    reporter.stop.set()
    with pytest.raises(Preempted):
        prepare(booth.run(), store=booth.store, reporter=reporter, workdir=booth.workdir)
    assert list(booth.workdir.iterdir()) == []


def test_progress_counts_files(booth: Booth) -> None:
    booth.upload_pictures(4)
    reporter = Reporter(first_stage="Prepare")
    prepare(booth.run(), store=booth.store, reporter=reporter, workdir=booth.workdir)
    progress = reporter.status.progress
    assert (progress.stage, progress.step, progress.total_steps) == ("Prepare", 4, 4)
    assert progress.percentage == 5


def test_a_half_published_snapshot_is_completed(booth: Booth) -> None:
    booth.upload_pictures(2)
    outcome = booth.prepare()
    prefix = booth.store.key_of(outcome.dataset.uri)
    booth.store.delete(f"{prefix}/manifest.json")
    booth.store.delete(f"{prefix}/images/0001.png")
    assert read_manifest(booth.store, prefix) is None
    assert booth.prepare() == outcome
    assert read_manifest(booth.store, prefix) is not None
