"""kill -9 of client and server: nothing acknowledged is lost, nothing half-written is shown."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubebooth_api.digests import digest_bytes
from kubebooth_cluster.weed import Weed
from kubebooth_store import (
    NotFound,
    Store,
    StoreError,
    fetch,
    open_store,
    publish,
    read_manifest,
)
from kubebooth_store.listing import uploads

from tests.integration.store.liar import Liar

Opener = Callable[..., Store]
PART = 16 << 20

CLIENT = """
import sys
from pathlib import Path
from kubebooth_store import open_store_from_env, publish
uri, endpoint, verb, path, key, stop_after = sys.argv[1:]
store = open_store_from_env(uri, endpoint or None)
done = 0
def tell(count):
    global done
    done += count
    if done >= int(stop_after):
        print("now", flush=True)
        sys.stdin.read()
if verb == "publish":
    publish(store, key, Path(path), kind="model", on_bytes=tell)
elif verb == "upload":
    store.upload(Path(path), key, on_bytes=tell)
else:
    store.download(key, Path(path), on_bytes=tell)
print("done", flush=True)
"""


def killed_amid(store: Store, weed: Weed, verb: str, path: Path, key: str, *, after: int) -> None:
    """Run a verb in another process and kill -9 it once so many bytes are done."""
    remote = store.uri.startswith("s3:")
    endpoint = weed.url if remote else ""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, store.uri, endpoint, verb, str(path), key, str(after)],
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


def test_a_client_killed_amid_an_upload_shows_nothing_and_the_next_one_goes_on(
    open_s3: Opener, weed: Weed, liar: Liar, tmp_path: Path
) -> None:
    data = os.urandom(3 * PART)
    (tmp_path / "f").write_bytes(data)
    store = open_s3()
    killed_amid(store, weed, "upload", tmp_path / "f", "k", after=2 * PART)
    assert store.stat("k") is None
    assert list(store.list("")) == []
    through = open_s3(endpoint=liar.url)
    told: list[int] = []
    through.upload(tmp_path / "f", "k", on_bytes=told.append)
    assert liar.count(method="PUT") <= 1  # of three parts, two were there for certain
    assert liar.count(method="POST", part="uploads") == 0
    assert sum(told) == len(data)
    store.download("k", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def test_an_unfinished_upload_of_other_bytes_is_not_mixed_in(
    open_s3: Opener, weed: Weed, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(2 * PART))
    store = open_s3()
    killed_amid(store, weed, "upload", path, "k", after=PART)
    with path.open("r+b") as file:  # only the end changes: every part sent so far still fits
        file.seek(-10, os.SEEK_END)
        file.write(b"other end.")
    entry = store.upload(path, "k")
    assert entry.sha256 == digest_bytes(path.read_bytes()).removeprefix("sha256:")
    assert store.upload(path, "k") == entry
    store.download("k", tmp_path / "back", sha256=entry.sha256)
    store.delete_prefix("")
    wire = store.wire  # type: ignore[attr-defined]
    assert list(uploads(wire, store.uri.removeprefix("s3://tests/"))) == []


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_client_killed_amid_a_download_shows_nothing_and_the_next_one_goes_on(
    kind: str, open_s3: Opener, weed: Weed, tmp_path: Path
) -> None:
    store = open_s3() if kind == "s3" else open_store((tmp_path / "store").as_uri())
    data = os.urandom(24 << 20)
    store.write("k", data)
    target = tmp_path / "f"
    killed_amid(store, weed, "download", target, "k", after=12 << 20)
    assert not target.exists()
    (part,) = tmp_path.glob(".kubebooth-*.part")
    begun = part.stat()
    assert begun.st_size >= 8 << 20
    store.download("k", target)
    assert target.read_bytes() == data
    assert target.stat().st_ino == begun.st_ino


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_client_killed_amid_publishing_publishes_nothing_and_the_next_one_all(
    kind: str, open_s3: Opener, weed: Weed, tmp_path: Path
) -> None:
    store = open_s3() if kind == "s3" else open_store((tmp_path / "store").as_uri())
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"f{number}").write_bytes(os.urandom(100_000))
    killed_amid(store, weed, "publish", folder, "m", after=300_000)
    assert read_manifest(store, "m") is None
    with pytest.raises(NotFound, match="no manifest"):
        fetch(store, "m", tmp_path / "out")
    manifest = publish(store, "m", folder, kind="model")
    assert fetch(store, "m", tmp_path / "out") == manifest


@pytest.fixture
def own_weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A server that the test may kill and start again."""
    server = Weed(tmp_path_factory.mktemp("own"), buckets=("tests",))
    try:
        yield server.start()
    finally:
        server.kill()
        server.stop()


def opened(weed: Weed, *, timeout_s: float) -> Store:
    return open_store(
        "s3://tests/own",
        endpoint=weed.url,
        access_key=weed.access_key,
        secret_key=weed.secret_key,
        timeout_s=timeout_s,
    )


def test_a_server_killed_again_and_again_loses_nothing_it_acknowledged(own_weed: Weed) -> None:
    seed = random.randrange(1 << 32)
    sizes = random.Random(seed)
    store = opened(own_weed, timeout_s=40)
    acknowledged: dict[str, str | None] = {}
    begun: dict[str, str] = {}
    stop = threading.Event()

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            data = os.urandom(sizes.choice([10, 5_000, 300_000, 3_000_000]))
            key = f"w{worker}/{number % 20}"
            begun[f"{key}#{number}"] = digest_bytes(data)
            acknowledged[key] = store.write(key, data).sha256
            number += 1

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        stop.wait(sizes.uniform(0.3, 0.9))
        own_weed.kill()
        own_weed.start()
    stop.set()
    for thread in threads:
        thread.join()
    assert len(acknowledged) > 3, f"seed {seed}"
    lost = [
        key
        for key, sha256 in acknowledged.items()
        if digest_bytes(store.read(key, max_bytes=1 << 24)) != f"sha256:{sha256}"
    ]
    assert lost == [], f"seed {seed}"
    shown = {entry.key: entry.size for entry in store.list("")}
    assert set(shown) == set(acknowledged), f"seed {seed}"


def test_a_server_killed_amid_writes_shows_whole_files_only(own_weed: Weed) -> None:
    patient, impatient = opened(own_weed, timeout_s=20), opened(own_weed, timeout_s=1)
    whole = {digest_bytes(b"old")}
    for worker in range(4):
        patient.write(f"w{worker}", b"old")

    def write(worker: int) -> None:
        data = os.urandom(2_000_000)
        whole.add(digest_bytes(data))
        with contextlib.suppress(StoreError):
            impatient.write(f"w{worker}", data)
            write(worker)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    threads[0].join(0.5)
    own_weed.kill()
    for thread in threads:
        thread.join()
    own_weed.start()
    shown = [patient.read(entry.key, max_bytes=1 << 24) for entry in patient.list("")]
    assert len(shown) == 4
    assert {digest_bytes(data) for data in shown} <= whole


def test_a_server_killed_amid_a_large_upload_is_waited_for(own_weed: Weed, tmp_path: Path) -> None:
    data = os.urandom(3 * PART)
    (tmp_path / "f").write_bytes(data)
    store = opened(own_weed, timeout_s=60)
    killed = threading.Event()

    def kill_once(_count: int) -> None:
        if not killed.is_set():
            killed.set()
            own_weed.kill()
            own_weed.start()

    store.upload(tmp_path / "f", "k", on_bytes=kill_once)
    assert killed.is_set()
    store.download("k", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


WRITER = """
import sys
from kubebooth_store import open_store
store = open_store(sys.argv[1])
while True:
    for letter in "ab":
        store.write("k", letter.encode() * 1_000_000)
        store.write("p", letter.encode() * 1_000)
        print(letter, flush=True)
"""


def test_a_writer_of_a_folder_killed_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri(), timeout_s=5)
    allowed = {letter * count for letter in (b"a", b"b") for count in (1_000, 1_000_000)}
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, store.uri], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(random.randrange(1, 8)):
                writer.stdout.readline()
                assert store.read("k", max_bytes=1 << 20) in allowed
            writer.kill()
        assert store.read("k", max_bytes=1 << 20) in allowed
        assert store.read("p", max_bytes=1 << 20) in allowed
        assert {entry.key for entry in store.list("")} == {"k", "p"}
        store.write("free", b"the lock died with its holder")
        store.delete("free")
