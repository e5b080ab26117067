"""Fetching: nothing of a hostile manifest gets through, nothing half-fetched is shown."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_api.digests import digest_bytes, digest_json
from kubebooth_store import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Refused,
    Store,
    StoreError,
    Unavailable,
    fetch,
    open_store,
    publish_files,
    read_manifest,
)

SHA = digest_bytes(b"1").removeprefix("sha256:")


LEAVES = st.none() | st.booleans() | st.text() | st.integers()
FIELDS = st.sampled_from(["kind", "digest", "files", "createdAt"])
ANY_JSON = st.recursive(LEAVES, st.lists, max_leaves=5) | st.dictionaries(FIELDS, st.text())


def manifest_of(*files: tuple[str, int, str], **changes: Any) -> bytes:
    """A manifest whose digest is true to its files, however hostile they are."""
    return json.dumps(
        {
            "kind": "model",
            "digest": digest_json([list(file) for file in sorted(files)]),
            "files": [{"path": p, "size": s, "sha256": d} for p, s, d in files],
            "createdAt": "2026-01-01T00:00:00Z",
            "metadata": {},
            **changes,
        }
    ).encode()


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "a//b",
        "a\\..\\evil",
        ".",
        "a/.",
        "a\u0000b",
        "a\nb",
        "manifest.json",
        ".kubebooth/lock",
        "",
        "x" * 2000,
    ],
)
def test_a_manifest_with_a_hostile_path_is_corrupt_and_writes_nothing(
    store: Store, tmp_path: Path, path: str
) -> None:
    store.write("x/manifest.json", manifest_of((path, 1, SHA)))
    with pytest.raises(Corrupt, match="manifest"):
        fetch(store, "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        manifest_of(("a", 1, SHA), digest="sha256:" + "0" * 64),
        manifest_of(("a", -1, SHA)),
        manifest_of(("a", 1, "zz")),
        manifest_of(("a", 1, SHA), kind="other"),
        manifest_of(("a", 1, SHA), surprise=1),
        manifest_of(("a", 1, SHA), ("a", 1, SHA)),
        manifest_of(("a", 1, SHA), ("a/b", 1, SHA)),
    ],
)
def test_a_malformed_or_altered_manifest_is_corrupt(
    store: Store, tmp_path: Path, data: bytes
) -> None:
    store.write("x/manifest.json", data)
    with pytest.raises(Corrupt, match="manifest"):
        fetch(store, "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(ANY_JSON)
def test_any_json_is_a_manifest_or_corrupt_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    store = open_store(tmp_path_factory.mktemp("any").as_uri())
    store.write("x/manifest.json", json.dumps(value).encode())
    with pytest.raises(Corrupt, match="manifest"):
        read_manifest(store, "x")


def test_a_size_that_lies_is_corrupt_before_the_bytes_are_read(
    store: Store, tmp_path: Path
) -> None:
    store.write("x/a", b"12")
    store.write("x/manifest.json", manifest_of(("a", 1, SHA)))
    with pytest.raises(Corrupt, match="2 bytes instead of 1"):
        fetch(store, "x", tmp_path / "out")


def test_a_listed_file_that_is_missing_is_named(store: Store, tmp_path: Path) -> None:
    store.write("x/manifest.json", manifest_of(("deep/a", 1, SHA)))
    with pytest.raises(Corrupt, match="deep/a is listed in the manifest but missing"):
        fetch(store, "x", tmp_path / "out")


def test_more_than_was_allowed_or_fits_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    store.write("x/manifest.json", manifest_of(("a", 1 << 60, SHA)))
    with pytest.raises(Refused, match="more than the 1000"):
        fetch(store, "x", tmp_path / "out", max_bytes=1000)
    with pytest.raises(Unavailable, match="enlarge"):
        fetch(store, "x", tmp_path / "out")


def test_other_content_than_expected_is_corrupt(store: Store, tmp_path: Path) -> None:
    publish_files(store, "x", {"a": b"1"}, kind="model")
    with pytest.raises(Corrupt, match="instead of"):
        fetch(store, "x", tmp_path / "out", expect_digest="sha256:" + "0" * 64)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_keeps_what_is_right_and_what_is_the_users(
    store: Store, tmp_path: Path
) -> None:
    publish_files(store, "x", {"a": b"right", "b": b"fresh", "c/d": b"new"}, kind="model")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"right")
    (out / "b").write_bytes(b"stale")
    (out / "mine.txt").write_text("mine")
    kept = (out / "a").stat().st_ino
    fetch(store, "x", out)
    assert (out / "a").stat().st_ino == kept
    assert (out / "b").read_bytes() == b"fresh"
    assert (out / "c/d").read_bytes() == b"new"
    assert (out / "mine.txt").read_text() == "mine"


def test_a_link_in_the_target_leads_nowhere(store: Store, tmp_path: Path) -> None:
    publish_files(store, "x", {"sub/a": b"1", "b": b"2"}, kind="model")
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (outside / "b").write_bytes(b"precious")
    (out / "sub").symlink_to(outside, target_is_directory=True)
    with pytest.raises(Denied, match="link"):
        fetch(store, "x", out)
    (out / "sub").unlink()
    (out / "b").symlink_to(outside / "b")
    fetch(store, "x", out)
    assert (outside / "b").read_bytes() == b"precious"
    assert list(outside.iterdir()) == [outside / "b"]
    (tmp_path / "alias").symlink_to(out, target_is_directory=True)
    with pytest.raises(Denied, match="link"):
        fetch(store, "x", tmp_path / "alias")


class Torn:
    """A folder store that fails in the middle of the n-th download, as a kill would."""

    def __init__(self, store: Store, *, after: int) -> None:
        self._store = store
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def download(self, *words: Any, **named: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Unavailable("torn")
        return self._store.download(*words, **named)


def test_a_torn_fetch_shows_no_folder_and_the_next_one_goes_on(
    store: Store, tmp_path: Path
) -> None:
    publish_files(store, "x", {name: name.encode() for name in "abcd"}, kind="model")
    with pytest.raises(Unavailable, match="torn"):
        fetch(Torn(store, after=2), "x", tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    counting = Torn(store, after=2)  # two files are missing: a third download would be torn
    fetch(counting, "x", tmp_path / "out")  # type: ignore[arg-type]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list("abcd")
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["out"]


def test_leftovers_of_other_content_do_not_show_up_in_the_folder(
    store: Store, tmp_path: Path
) -> None:
    publish_files(store, "old", {"deep/gone": b"1", "same": b"2"}, kind="model")
    publish_files(store, "new", {"same": b"3"}, kind="model")
    with pytest.raises(Unavailable):
        fetch(Torn(store, after=1), "old", tmp_path / "out")  # type: ignore[arg-type]
    (tmp_path / ".out.fetching/.kubebooth-0-0.part").write_bytes(b"half of another file")
    fetch(store, "new", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"same": b"3"}


def test_two_fetches_into_one_folder_do_not_mix(store: Store, tmp_path: Path) -> None:
    publish_files(store, "x", {"a": b"1"}, kind="model")
    staging = tmp_path / ".out.fetching"
    staging.mkdir()
    held = os.open(staging, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="another process"):
        fetch(store, "x", tmp_path / "out")
    os.close(held)
    fetch(store, "x", tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"1"


def test_nothing_published_is_told_as_such(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no manifest"):
        fetch(store, "nothing/here", tmp_path / "out")


@pytest.fixture
def resumed(store: Store, tmp_path: Path) -> tuple[Store, Path, bytes]:
    """A large file in the store, and the beginning of it in a part file of a killed download."""
    data = os.urandom(20 << 20)
    store.write("big", data)
    reads = 0

    def stop(_count: int) -> None:
        nonlocal reads
        reads += 1
        if reads == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.download("big", tmp_path / "big", on_bytes=stop)
    return store, tmp_path, data


def test_a_broken_download_shows_nothing_and_is_resumed(
    resumed: tuple[Store, Path, bytes],
) -> None:
    store, folder, data = resumed
    (part,) = folder.glob(".kubebooth-*.part")
    begun = part.stat()
    assert not (folder / "big").exists()
    assert 0 < begun.st_size < len(data)
    store.download("big", folder / "big")
    assert (folder / "big").stat().st_ino == begun.st_ino
    assert (folder / "big").read_bytes() == data
    assert list(folder.glob(".kubebooth-*")) == []


def test_a_damaged_beginning_is_noticed_and_fetched_anew(
    resumed: tuple[Store, Path, bytes],
) -> None:
    store, folder, data = resumed
    (part,) = folder.glob(".kubebooth-*.part")
    with part.open("r+b") as file:
        file.write(b"damage")
    digest = digest_bytes(data).removeprefix("sha256:")
    told: list[int] = []
    store.download("big", folder / "big", sha256=digest, on_bytes=told.append)
    assert (folder / "big").read_bytes() == data
    assert sum(told) == len(data)


def test_a_beginning_of_an_older_version_is_not_used(resumed: tuple[Store, Path, bytes]) -> None:
    store, folder, data = resumed
    newer = os.urandom(len(data))
    store.write("big", newer)
    store.download("big", folder / "big")
    assert (folder / "big").read_bytes() == newer
    assert list(folder.glob(".kubebooth-*")) == []


def test_every_error_of_the_room_is_a_store_error() -> None:
    assert all(
        issubclass(kind, StoreError) for kind in (Conflict, Corrupt, Denied, NotFound, Refused)
    )
