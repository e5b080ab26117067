"""Publishing: files first, manifest last, once; what is refused before anything is sent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_store import (
    Conflict,
    Corrupt,
    NotFound,
    Refused,
    Store,
    fetch,
    open_store,
    publish,
    publish_files,
    publish_uploaded,
    read_manifest,
)

SEGMENTS = st.text(alphabet="abcXYZ019-_.ü ~+%&", min_size=1, max_size=8).filter(
    lambda text: text not in {".", ".."}
)
TREES = st.dictionaries(
    st.builds("/".join, st.lists(SEGMENTS, min_size=1, max_size=3)),
    st.binary(max_size=300),
    min_size=1,
    max_size=6,
).filter(
    lambda tree: (
        "manifest.json" not in tree and not any(b.startswith(f"{a}/") for a in tree for b in tree)
    )
)


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@settings(max_examples=25, deadline=None)
@given(files=TREES)
def test_what_was_published_is_fetched_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    store = open_store((folder / "store").as_uri())
    sent = publish(store, "models/x", make(folder / "in", files), kind="model")
    got = fetch(store, "models/x", folder / "out", expect_digest=sent.digest)
    assert tree_of(folder / "out") == files
    assert got == sent
    assert sent.size_bytes == sum(len(data) for data in files.values())


@settings(max_examples=25, deadline=None)
@given(files=TREES, position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_never_fetched(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], position: int, bit: int
) -> None:
    name = max(files, key=lambda key: len(files[key]))
    if not files[name]:
        return
    folder = tmp_path_factory.mktemp("flip")
    store = open_store((folder / "store").as_uri())
    publish_files(store, "x", dict(files), kind="model")
    stored = folder / "store/x" / name
    data = bytearray(stored.read_bytes())
    data[position % len(data)] ^= 1 << bit
    stored.write_bytes(data)
    with pytest.raises(Corrupt, match="SHA-256"):
        fetch(store, "x", folder / "out")
    assert not (folder / "out").exists()


def test_the_same_content_again_is_a_success_and_other_content_a_conflict(
    store: Store, root: Path
) -> None:
    first = publish_files(store, "a/x", {"w": b"one"}, kind="artifact", metadata={"step": 5})
    again = publish_files(store, "a/x", {"w": b"one"}, kind="artifact", metadata={"step": 6})
    assert again == first
    assert again.metadata == {"step": 5}
    with pytest.raises(Conflict, match="never changes"):
        publish_files(store, "a/x", {"w": b"two"}, kind="artifact")
    assert (root / "a/x/w").read_bytes() == b"one"


def test_publishing_again_heals_a_file_that_was_lost_or_damaged(store: Store, root: Path) -> None:
    publish_files(store, "x", {"a": b"one", "b": b"two"}, kind="model")
    (root / "x/a").unlink()
    (root / "x/b").write_bytes(b"TWO")
    publish_files(store, "x", {"a": b"one", "b": b"two"}, kind="model")
    assert (root / "x/a").read_bytes() == b"one"
    assert (root / "x/b").read_bytes() == b"two"


def test_leftovers_of_a_killed_publish_are_neither_seen_nor_in_the_way(store: Store) -> None:
    store.write("x/w", b"half of someth")
    assert read_manifest(store, "x") is None
    with pytest.raises(NotFound, match="no manifest"):
        fetch(store, "x", Path("unused"))
    publish_files(store, "x", {"w": b"something"}, kind="model")
    assert store.read("x/w", max_bytes=100) == b"something"


def test_what_can_not_be_published_is_refused_before_anything_is_sent(
    store: Store, tmp_path: Path
) -> None:
    folder = make(tmp_path / "in", {"a": b"1", "manifest.json": b"{}"})
    with pytest.raises(Refused, match="rename or remove"):
        publish(store, "x", folder, kind="model")
    (folder / "manifest.json").unlink()
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="link"):
        publish(store, "x", folder, kind="model")
    with pytest.raises(Refused, match="no file"):
        publish_files(store, "x", {}, kind="model")
    with pytest.raises(Refused, match="segment"):
        publish_files(store, "x", {"../y": b"1"}, kind="model")
    with pytest.raises(Refused, match="kind"):
        publish_files(store, "x", {"a": b"1"}, kind="picture")
    with pytest.raises(Refused, match="metadata"):
        publish_files(store, "x", {"a": b"1"}, kind="model", metadata={"folder": folder})
    assert list(store.list("")) == []


def test_deleting_a_prefix_hides_manifests_before_their_files(store: Store) -> None:
    publish_files(store, "s/one", {"a": b"1"}, kind="model")
    publish_files(store, "s/two", {"a": b"2"}, kind="model")
    publish_files(store, "sibling", {"a": b"3"}, kind="model")
    gone: list[str] = []
    delete = store.delete
    store.delete = lambda key: (gone.append(key), delete(key))[1]  # type: ignore[method-assign]
    assert store.delete_prefix("s") == 4
    assert [key.rpartition("/")[2] for key in gone] == ["manifest.json"] * 2 + ["a"] * 2
    assert [entry.key for entry in store.list("")] == ["sibling/a", "sibling/manifest.json"]


def test_progress_adds_up_to_the_size_both_ways(store: Store, tmp_path: Path) -> None:
    folder = make(tmp_path / "in", {"a": b"x" * 70_000, "b/c": b"y", "d": b""})
    sent: list[int] = []
    publish(store, "x", folder, kind="model", on_bytes=sent.append)
    assert sum(sent) == 70_001
    for target in ("out", "out"):  # the second time everything is there
        got: list[int] = []
        fetch(store, "x", tmp_path / target, on_bytes=got.append)
        assert sum(got) == 70_001


def test_the_manifest_is_readable_json_with_camel_case(store: Store) -> None:
    publish_files(store, "x", {"a": b"1"}, kind="samples", metadata={"stage": "Denoiser"})
    shown = json.loads(store.read("x/manifest.json", max_bytes=10_000))
    assert set(shown) == {"kind", "digest", "files", "createdAt", "metadata"}
    assert shown["metadata"] == {"stage": "Denoiser"}


def test_files_sent_one_by_one_are_published_like_a_folder(store: Store, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", {"a.json": b"{}", "unet/w.bin": b"x" * 99})
    sent = {name: store.upload(folder / name, f"models/one/{name}") for name in tree_of(folder)}
    assert read_manifest(store, "models/one") is None
    one = publish_uploaded(store, "models/one", sent, kind="model")
    assert one.digest == publish(store, "models/two", folder, kind="model").digest
    assert publish_uploaded(store, "models/one", sent, kind="model") == one


def test_a_file_that_changed_after_it_was_sent_is_not_published(store: Store) -> None:
    sent = {"a": store.write("models/one/a", b"first")}
    store.write("models/one/a", b"other")
    with pytest.raises(Conflict, match="not what was just uploaded"):
        publish_uploaded(store, "models/one", sent, kind="model")
    assert read_manifest(store, "models/one") is None


def test_other_content_never_replaces_what_was_published_one_by_one(store: Store) -> None:
    publish_uploaded(
        store, "models/one", {"a": store.write("models/one/a", b"first")}, kind="model"
    )
    other = {"b": store.write("models/one/b", b"second")}
    with pytest.raises(Conflict, match="never changes"):
        publish_uploaded(store, "models/one", other, kind="model")


def test_a_file_of_unknown_content_is_not_published(store: Store) -> None:
    entry = replace(store.write("models/one/a", b"first"), sha256=None)
    with pytest.raises(Refused, match="SHA-256 is not known"):
        publish_uploaded(store, "models/one", {"a": entry}, kind="model")
