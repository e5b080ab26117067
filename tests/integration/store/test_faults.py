"""Servers and networks that lie, stall, break off and answer nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from kubebooth_store import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Store,
    StoreError,
    Unavailable,
    move_pointer,
    open_store,
    probe,
    publish_files,
    read_manifest,
    read_pointer,
)

from tests.integration.store.liar import Liar

LARGE = (17 << 20) + 3
PASSING = ["truncate", "stall", "reset", "503"]
Opener = Callable[..., Store]


@pytest.fixture
def near(open_s3: Opener) -> Store:
    """The test's prefix without the proxy."""
    return open_s3()


@pytest.fixture
def far(open_s3: Opener, liar: Liar) -> Store:
    """The test's prefix through the proxy, impatient."""
    return open_s3(endpoint=liar.url, timeout_s=3)


@pytest.mark.parametrize("fault", [*PASSING, "flip the reply"])
def test_a_fault_that_passes_while_reading_is_not_noticed(
    near: Store, far: Store, liar: Liar, fault: str
) -> None:
    near.write("k", b"content")
    liar.lie(fault, method="GET")
    assert far.read("k", max_bytes=100) == b"content"
    assert liar.count(method="GET") == 2


@pytest.mark.parametrize("fault", [*PASSING[1:], "flip the request", "lose the answer"])
def test_a_fault_that_passes_while_writing_is_not_noticed(
    near: Store, far: Store, liar: Liar, fault: str
) -> None:
    liar.lie(fault, method="PUT")
    far.write("k", b"content")
    assert near.read("k", max_bytes=100) == b"content"
    assert liar.count(method="PUT") == 2


@pytest.mark.parametrize("fault", ["503", "flip the request", "lose the answer"])
def test_a_fault_that_passes_within_a_large_upload_costs_one_part(
    near: Store, far: Store, liar: Liar, tmp_path: Path, fault: str
) -> None:
    data = os.urandom(LARGE)
    (tmp_path / "f").write_bytes(data)
    liar.lie(fault, method="PUT", part="partNumber=2")
    far.upload(tmp_path / "f", "k")
    assert liar.count(method="PUT", part="partNumber") == 3
    near.download("k", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("fault", ["truncate", "reset", "flip the reply"])
def test_a_fault_that_passes_within_a_large_download_is_mended(
    near: Store, far: Store, liar: Liar, tmp_path: Path, fault: str
) -> None:
    data = os.urandom(LARGE)
    near.write("k", data)
    liar.lie(fault, method="GET")
    told: list[int] = []
    far.download("k", tmp_path / "f", on_bytes=told.append)
    assert (tmp_path / "f").read_bytes() == data
    assert sum(told) == len(data)


def test_a_server_that_always_damages_what_it_gives_is_called_corrupt(
    near: Store, far: Store, liar: Liar, tmp_path: Path
) -> None:
    near.write("k", b"content")
    liar.lie("flip the reply", method="GET", times=1000)
    with pytest.raises(Corrupt, match=r"k.*(damages|network)"):
        far.read("k", max_bytes=100)
    with pytest.raises(Corrupt, match=r"k has SHA-256 .* publish it again"):
        far.download("k", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_always_damages_what_is_sent_stores_nothing(
    near: Store, far: Store, liar: Liar, tmp_path: Path
) -> None:
    near.write("old", b"old content")
    liar.lie("flip the request", method="PUT", times=1000)
    for key in ("old", "new"):
        with pytest.raises(Corrupt, match=key):
            far.write(key, b"new content")
    (tmp_path / "f").write_bytes(os.urandom(LARGE))
    with pytest.raises(Corrupt, match="large"):
        far.upload(tmp_path / "f", "large")
    assert near.read("old", max_bytes=100) == b"old content"
    assert [entry.key for entry in near.list("")] == ["old"]


@pytest.mark.timeout(60)  # the store's own deadline is 1 s; a hang would be for ever
@pytest.mark.parametrize("fault", ["truncate", "stall", "reset", "503", "trickle"])
def test_a_fault_that_stays_ends_in_a_sentence_and_in_time(
    near: Store, open_s3: Opener, liar: Liar, fault: str
) -> None:
    near.write("k", b"x" * 4000)
    liar.lie(fault, method="GET", times=10_000)
    store = open_s3(endpoint=liar.url, timeout_s=1)
    with pytest.raises(Unavailable, match=r"k at http.*gave up after .* check that the store"):
        store.read("k", max_bytes=5000)


def test_a_store_that_is_away_ends_in_a_sentence() -> None:
    store = open_store("s3://b", endpoint="http://127.0.0.1:9", timeout_s=0.3)
    with pytest.raises(Unavailable, match=r"no connection could be made.*reachable") as caught:
        store.stat("k")
    assert caught.value.retryable


def test_a_page_that_is_no_s3_is_told_as_such(far: Store, liar: Liar) -> None:
    liar.lie("talk html", times=1000)
    with pytest.raises(Corrupt, match="S3 server"):
        list(far.list(""))


def test_wrong_keys_and_missing_buckets_are_told_at_once(open_s3: Opener, near: Store) -> None:
    near.write("k", b"1")
    for more in ({"secret_key": "wrong-secret"}, {"access_key": "nobody"}):
        store = open_s3(**more)
        for call in (
            lambda store=store: store.stat("k"),
            lambda store=store: store.read("k", max_bytes=1),
            lambda store=store: store.write("k", b"2"),
            lambda store=store: list(store.list("")),
        ):
            with pytest.raises(Denied, match="secret key"):
                call()
    assert near.read("k", max_bytes=1) == b"1"


def test_a_missing_bucket_is_named(weed: object, open_s3: Opener) -> None:
    there = open_s3()
    wire = there.wire  # type: ignore[attr-defined]
    keys = {"access_key": wire._keys.access, "secret_key": wire._keys.secret}
    store = open_store("s3://absent/x", endpoint=wire.endpoint, timeout_s=3, **keys)
    for call in (lambda: store.stat("k"), lambda: store.read("k", max_bytes=1)):
        with pytest.raises(NotFound, match=r"absent.*bucket|bucket.*absent"):
            call()


@pytest.mark.parametrize("kind", ["create", "replace"])
def test_a_conditional_write_whose_answer_is_lost_knows_its_own_earlier_try(
    near: Store, far: Store, liar: Liar, kind: str
) -> None:
    expect = near.write("p", b"{}").etag if kind == "replace" else None
    liar.lie("lose the answer", method="PUT")
    moved = move_pointer(far, "p", {"mine": 1}, expect=expect)
    assert liar.count(method="PUT") == 2
    assert read_pointer(near, "p") == ({"mine": 1}, moved.etag)


def test_a_conditional_write_that_really_lost_is_a_conflict_though_the_bytes_are_equal(
    near: Store, far: Store, liar: Liar
) -> None:
    move_pointer(near, "p", {"same": 1}, expect=None)
    liar.lie("reset", method="PUT")
    with pytest.raises(Conflict):
        move_pointer(far, "p", {"same": 1}, expect=None)


def test_a_completed_upload_whose_answer_is_lost_is_a_success(
    near: Store, far: Store, liar: Liar, tmp_path: Path
) -> None:
    data = os.urandom(LARGE)
    (tmp_path / "f").write_bytes(data)
    liar.lie("lose the answer", method="POST", part="uploadId")
    entry = far.upload(tmp_path / "f", "k")
    assert entry == near.stat("k")
    near.download("k", tmp_path / "back", sha256=entry.sha256)


def test_a_key_replaced_within_a_download_does_not_mix_two_versions(
    near: Store, open_s3: Opener, tmp_path: Path
) -> None:
    near.write("k", b"a" * LARGE)

    def replace(_count: int) -> None:
        if near.stat("k").size == LARGE:  # type: ignore[union-attr]
            near.write("k", b"b" * (LARGE + 1))

    one_by_one = open_s3(parallel=1)
    with pytest.raises(Conflict):
        one_by_one.download("k", tmp_path / "f", on_bytes=replace)
    assert not (tmp_path / "f").exists()
    near.download("k", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"b" * (LARGE + 1)


def test_a_file_that_changes_while_it_is_stored_is_not_shown(near: Store, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(2 * LARGE))

    def change(_count: int) -> None:
        with path.open("r+b") as file:
            file.write(os.urandom(100))

    with pytest.raises(StoreError, match=r"changed while it was stored|damaged"):
        near.upload(path, "k", on_bytes=change)
    assert near.stat("k") is None


@pytest.mark.parametrize("fault", ["reset", "503", "lose the answer"])
def test_publishing_through_a_bad_network_publishes_once(
    near: Store, far: Store, liar: Liar, fault: str
) -> None:
    for part in ("/a", "/b", "manifest.json"):
        liar.lie(fault, method="PUT", part=part)
    manifest = publish_files(far, "m", {"a": b"1", "b": b"2"}, kind="dataset")
    assert read_manifest(near, "m") == manifest


def test_the_probe_says_what_a_server_lacks_in_sentences(far: Store, liar: Liar) -> None:
    liar.lie("talk html", method="POST", times=1000)
    found = probe(far)
    assert not found.multipart
    assert found.conditional_create
    assert any("over 16 MiB" in sentence for sentence in found.sentences())


class Careless:
    """A store on a server that knows no conditions."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, key: str, data: bytes, **_conditions: object) -> object:
        return self._store.write(key, data)


def test_the_probe_notices_a_server_that_knows_no_conditions(near: Store) -> None:
    found = probe(Careless(near))  # type: ignore[arg-type]
    assert not found.conditional_create
    assert not found.conditional_replace
    told = " ".join(found.sentences())
    assert "If-None-Match" in told
    assert "If-Match" in told
