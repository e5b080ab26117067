"""Files that are made while they are stored: whole or not there at all, on S3 and in a folder."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from kubebooth_api.digests import digest_bytes
from kubebooth_cluster.weed import Weed
from kubebooth_store import Conflict, Refused, Store, StoreError, open_store
from kubebooth_store.listing import uploads

from tests.integration.store.liar import Liar

Opener = Callable[..., Store]
PART = 8 << 20
LARGE = 2 * PART + 12_345


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """The data in pieces of uneven lengths."""
    random_ = random.Random(seed)
    pieces, start = [], 0
    while start < len(data):
        length = random_.choice([1, 700, 65_536, 3_000_001])
        pieces.append(data[start : start + length])
        start += length
    return pieces


def stored(store: Store, size: int, pieces: Iterable[bytes]) -> None:
    """Write pieces to the key `k`."""
    with store.writing("k", size=size) as writer:
        for piece in pieces:
            writer.write(piece)


def is_clean(store: Store) -> bool:
    """Whether no unfinished upload and no staged file is left."""
    if not store.uri.startswith("s3:"):
        root = Path(store.uri.removeprefix("file://"))
        return not any((root / ".kubebooth" / "tmp").iterdir())
    wire = store.wire  # type: ignore[attr-defined]
    return list(uploads(wire, store.uri.removeprefix("s3://tests/"))) == []


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, LARGE])
def test_what_is_written_in_pieces_is_stored_whole(store: Store, size: int) -> None:
    data = os.urandom(size)
    with store.writing("a/k", size=size) as writer:
        for piece in pieces_of(data, seed=size):
            writer.write(piece)
    entry = writer.entry
    assert (entry.size, entry.sha256) == (size, digest_bytes(data).removeprefix("sha256:"))
    there = store.stat("a/k")
    assert there is not None
    assert (there.etag, there.size) == (entry.etag, size)
    assert store.read("a/k", max_bytes=size) == data
    assert is_clean(store)


def test_room_that_was_left_is_filled_wherever_parts_end(store: Store) -> None:
    data = os.urandom(LARGE)
    rooms = [(10, 4), (PART - 2, 4), (PART + 100, 8), (LARGE - 4, 4)]
    with store.writing("k", size=LARGE) as writer:
        position = 0
        starts = []
        for start, length in rooms:
            writer.write(data[position:start])
            starts.append(writer.leave(length))
            position = start + length
        assert store.stat("k") is None
        for start, length in reversed(rooms):
            writer.fill(start, data[start : start + length])
    assert starts == [start for start, _ in rooms]
    assert store.read("k", max_bytes=LARGE) == data


@pytest.mark.parametrize("written", [0, 5, PART + 5])
def test_a_stream_that_breaks_leaves_what_was_there(store: Store, written: int) -> None:
    store.write("k", b"old")

    def pieces() -> Iterator[bytes]:
        yield bytes(written)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        stored(store, LARGE, pieces())
    assert store.read("k", max_bytes=10) == b"old"
    assert [entry.key for entry in store.list("")] == ["k"]
    assert is_clean(store)


@pytest.mark.parametrize("size", [10, LARGE])
def test_other_bytes_than_announced_are_not_stored(store: Store, size: int) -> None:
    for wrong in (size - 1, size + 1):
        with pytest.raises(Refused, match="bytes"), store.writing("k", size=size) as writer:
            writer.write(bytes(wrong))
    with pytest.raises(Refused, match="bytes"), store.writing("k", size=size) as writer:
        writer.leave(size)
    with pytest.raises(Refused, match="room"), store.writing("k", size=size) as writer:
        writer.fill(0, b"1234")
    assert store.stat("k") is None
    assert is_clean(store)


def test_an_entry_is_read_in_the_version_that_was_seen(store: Store) -> None:
    for size in (100, 100_000):
        store.write("k", os.urandom(size))
        entry = store.stat("k")
        assert entry is not None
        data = store.read("k", max_bytes=size)
        assert store.read_at(entry, start=7, length=50) == data[7:57]
        assert store.read_at(entry, start=size, length=0) == b""
        with pytest.raises(Refused, match="outside"):
            store.read_at(entry, start=50, length=size)
        store.write("k", os.urandom(size))
        with pytest.raises(Conflict):
            store.read_at(entry, start=7, length=50)


@pytest.mark.parametrize("fault", ["reset", "503", "flip the request", "lose the answer"])
def test_a_fault_that_passes_within_a_stream_is_mended(
    open_s3: Opener, liar: Liar, fault: str
) -> None:
    data = os.urandom(LARGE)
    liar.lie(fault, method="PUT", part="partNumber=2")
    liar.lie("lose the answer", method="POST", part="uploadId")
    with open_s3(endpoint=liar.url, timeout_s=5).writing("k", size=LARGE) as writer:
        for piece in pieces_of(data, seed=1):
            writer.write(piece)
    assert open_s3().read("k", max_bytes=LARGE) == data


def test_a_store_that_goes_away_within_a_stream_shows_nothing(open_s3: Opener, liar: Liar) -> None:
    near = open_s3()
    near.write("k", b"old")
    liar.lie("503", method="PUT", part="partNumber=2", times=10_000)
    far = open_s3(endpoint=liar.url, timeout_s=1)
    with pytest.raises(StoreError, match="gave up"), far.writing("k", size=LARGE) as writer:
        writer.write(bytes(LARGE))
    assert near.read("k", max_bytes=10) == b"old"
    assert is_clean(near)


CLIENT = """
import sys
from kubebooth_store import open_store_from_env
store = open_store_from_env(sys.argv[1], sys.argv[2] or None)
with store.writing("k", size=int(sys.argv[3])) as writer:
    writer.write(bytes(int(sys.argv[3]) - 10))
    print("now", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_writer_killed_within_a_stream_shows_nothing_and_the_next_one_all(
    kind: str, open_s3: Opener, weed: Weed, tmp_path: Path
) -> None:
    store = open_s3() if kind == "s3" else open_store((tmp_path / "store").as_uri())
    store.write("k", b"old")
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, store.uri, weed.url if kind == "s3" else "", str(LARGE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": weed.access_key,
            "AWS_SECRET_ACCESS_KEY": weed.secret_key,
        },
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"now\n"
        client.kill()
    assert store.read("k", max_bytes=10) == b"old"
    assert [entry.key for entry in store.list("")] == ["k"]
    data = os.urandom(LARGE)
    with store.writing("k", size=LARGE) as writer:
        writer.write(data)
    assert store.read("k", max_bytes=LARGE) == data
    if kind == "s3":
        assert is_clean(store)
