"""The verbs keep the same promises in a folder and on a real S3 server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kubebooth_api.digests import digest_bytes
from kubebooth_store import (
    Conflict,
    Corrupt,
    NotFound,
    Refused,
    Store,
    fetch,
    move_pointer,
    probe,
    publish,
    read_manifest,
    read_pointer,
)

LARGE = 21 * (1 << 20) + 7
ODD_KEYS = ["plain", "with blank", "ü/ß~!'()*", "a+b%20&c=d;e@f:g,h$i#j?k", "d.o.t/.hidden", "日本"]


def hex_of(data: bytes) -> str:
    return digest_bytes(data).removeprefix("sha256:")


@pytest.mark.parametrize("key", ODD_KEYS)
def test_what_was_written_is_read_whatever_its_name(store: Store, key: str) -> None:
    written = store.write(key, key.encode())
    assert written.sha256 == hex_of(key.encode())
    assert store.stat(key) == written
    assert store.read(key, max_bytes=1000) == key.encode()
    assert [(e.key, e.size, e.etag) for e in store.list("")] == [(key, written.size, written.etag)]
    store.delete(key)
    store.delete(key)
    assert store.stat(key) is None


def test_lists_are_sorted_by_bytes_and_prefixes_are_folders(store: Store) -> None:
    keys = ["a b/x", "a-b/x", "a.b", "a/b/c", "a/x", "ab", "b"]
    for key in reversed(keys):
        store.write(key, b"1")
    assert [entry.key for entry in store.list("")] == keys
    assert [entry.key for entry in store.list("a")] == ["a/b/c", "a/x"]
    assert [entry.key for entry in store.list("a/")] == ["a/b/c", "a/x"]
    assert list(store.list("nothing")) == []
    assert store.delete_prefix("a") == 2
    assert [entry.key for entry in store.list("")] == ["a b/x", "a-b/x", "a.b", "ab", "b"]


def test_a_list_of_more_than_a_page_is_whole(open_s3: Callable[[], Store]) -> None:
    store = open_s3()
    keys = [f"many/{number:04}" for number in range(1010)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.write(key, b""), keys))
    assert [entry.key for entry in store.list("many")] == keys


def test_conditions_hold(store: Store) -> None:
    first = store.write("k", b"one", if_absent=True)
    with pytest.raises(Conflict, match="k"):
        store.write("k", b"two", if_absent=True)
    second = store.write("k", b"two", if_match=first.etag)
    with pytest.raises(Conflict, match="k"):
        store.write("k", b"three", if_match=first.etag)
    assert store.read("k", max_bytes=10) == b"two"
    assert store.stat("k") == second
    store.delete("k")
    with pytest.raises(Conflict):
        store.write("k", b"three", if_match=second.etag)
    assert store.stat("k") is None
    with pytest.raises(Refused):
        store.write("k", b"", if_absent=True, if_match="x")


def test_sixteen_racers_on_a_pointer_have_one_winner(store: Store) -> None:
    start = threading.Barrier(16)
    expect = move_pointer(store, "current.json", {"winner": -1}, expect=None).etag

    def race(number: int) -> int | None:
        start.wait()
        try:
            move_pointer(store, "current.json", {"winner": number}, expect=expect)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [won for won in pool.map(race, range(16)) if won is not None]
    assert len(winners) == 1
    pointer = read_pointer(store, "current.json")
    assert pointer is not None
    assert pointer[0] == {"winner": winners[0]}


def test_sixteen_racers_to_create_have_one_winner(store: Store) -> None:
    start = threading.Barrier(16)

    def race(number: int) -> int | None:
        start.wait()
        try:
            move_pointer(store, "new.json", {"winner": number}, expect=None)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [won for won in pool.map(race, range(16)) if won is not None]
    assert len(winners) == 1


def test_a_pointer_that_is_no_object_is_corrupt(store: Store) -> None:
    assert read_pointer(store, "p") is None
    for data in (b"", b"[1]", b"{", b"\xff", b"[" * 50_000):
        store.write("p", data)
        with pytest.raises(Corrupt, match="rewrite"):
            read_pointer(store, "p")


def test_ranges_and_bounds(store: Store) -> None:
    store.write("k", b"0123456789")
    assert store.open_range("k", start=3, length=4) == b"3456"
    assert store.open_range("k", start=8, length=100) == b"89"
    assert store.open_range("k", start=10, length=5) == b""
    assert store.open_range("k", start=0, length=0) == b""
    with pytest.raises(Refused):
        store.open_range("k", start=-1, length=5)
    with pytest.raises(Refused, match="9"):
        store.read("k", max_bytes=9)
    for call in (
        lambda: store.read("no", max_bytes=1),
        lambda: store.open_range("no", start=0, length=1),
        lambda: store.download("no", Path("never")),
    ):
        with pytest.raises(NotFound, match="no"):
            call()


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_a_file_goes_up_and_down_as_it_is(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(data)
    up: list[int] = []
    down: list[int] = []
    entry = store.upload(source, "k", sha256=hex_of(data), on_bytes=up.append)
    assert (entry.size, entry.sha256) == (size, hex_of(data))
    assert store.upload(source, "k") == entry
    got = store.download("k", target, sha256=hex_of(data), size=size, on_bytes=down.append)
    assert got.sha256 == hex_of(data)
    assert target.read_bytes() == data
    assert sum(up) == sum(down) == size
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_file_that_is_not_what_was_asked_to_store_is_not_stored(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"content")
    with pytest.raises(Corrupt, match="SHA-256"):
        store.upload(tmp_path / "f", "k", sha256="0" * 64)
    assert store.stat("k") is None


def test_other_content_of_the_same_size_replaces_what_is_there(
    store: Store, tmp_path: Path
) -> None:
    for data in (b"one", b"two"):
        (tmp_path / "f").write_bytes(data)
        store.upload(tmp_path / "f", "k")
        assert store.read("k", max_bytes=10) == data


def test_a_download_of_other_bytes_than_expected_leaves_nothing(
    store: Store, tmp_path: Path
) -> None:
    store.write("k", b"content")
    with pytest.raises(Corrupt, match="SHA-256"):
        store.download("k", tmp_path / "f", sha256="0" * 64)
    with pytest.raises(Corrupt, match="7 bytes instead of 8"):
        store.download("k", tmp_path / "f", size=8)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == []


def test_a_folder_is_published_and_fetched(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights").write_bytes(os.urandom(LARGE))
    (folder / "model_index.json").write_text("{}")
    assert read_manifest(store, "m") is None
    manifest = publish(store, "m", folder, kind="artifact", metadata={"format": "Diffusers"})
    assert publish(store, "m", folder, kind="artifact") == manifest
    assert read_manifest(store, "m") == manifest
    assert fetch(store, "m", tmp_path / "out", expect_digest=manifest.digest) == manifest
    for name in ("unet/weights", "model_index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(Conflict, match="choose another prefix"):
        publish(store, "m", folder, kind="artifact")


def test_two_publishers_of_other_content_have_one_winner_who_is_whole(
    store: Store, tmp_path: Path
) -> None:
    start = threading.Barrier(4)

    def run(number: int) -> str | None:
        folder = tmp_path / f"in{number}"
        folder.mkdir()
        (folder / f"w{number}").write_text(str(number))
        start.wait()
        try:
            return publish(store, "m", folder, kind="checkpoint").digest
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [digest for digest in pool.map(run, range(4)) if digest is not None]
    assert len(won) == 1
    assert fetch(store, "m", tmp_path / "out", expect_digest=won[0]).digest == won[0]


def test_the_probe_finds_nothing_lacking_and_leaves_nothing(store: Store) -> None:
    found = probe(store)
    assert found.sentences() == ()
    assert list(store.list("")) == []
