"""What only a store in a folder has: links, modes, names on disk, its lock."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

import pytest
from kubebooth_store import Conflict, Denied, NotFound, Refused, Store, Unavailable, open_store


def test_a_link_is_never_followed_out_of_the_store(store: Store, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store.write("a/plain", b"1")
    (root / "a" / "link").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    for key in ("a/link", "folder/secret"):
        with pytest.raises(Denied, match="link"):
            store.read(key, max_bytes=100)
        with pytest.raises(Denied, match="link"):
            store.write(key, b"overwritten")
        with pytest.raises(Denied, match="link"):
            store.delete(key)
    assert [entry.key for entry in store.list("")] == ["a/plain"]
    assert (outside / "secret").read_text() == "secret"


def test_files_are_readable_by_others_and_temporary_ones_are_gone(store: Store, root: Path) -> None:
    before = os.umask(0o077)
    try:
        store.write("a/b", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o644
    assert list((root / ".kubebooth/tmp").iterdir()) == []


def test_what_killed_writers_left_goes_after_a_day(store: Store, root: Path) -> None:
    store.write("a", b"1")
    old, fresh = root / ".kubebooth/tmp/old", root / ".kubebooth/tmp/fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 90_000,) * 2)
    store.write("b", b"2")
    assert not old.exists()
    assert fresh.exists()


def test_a_file_and_a_folder_can_not_share_a_name(store: Store) -> None:
    store.write("a", b"1")
    with pytest.raises(Conflict, match="same name"):
        store.write("a/b", b"2")
    store.write("c/d", b"3")
    with pytest.raises(Conflict, match="same name"):
        store.write("c", b"4")
    assert store.stat("a/b") is None
    assert store.stat("c") is None


def test_a_held_lock_is_told_and_not_waited_for_for_ever(root: Path) -> None:
    store = open_store(root.as_uri(), timeout_s=0.1)
    store.write("a", b"1")
    with (root / ".kubebooth/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another writer"):
            store.write("a", b"2")
    assert store.write("a", b"2").size == 1


def test_deleting_removes_the_folders_it_empties_and_no_others(store: Store, root: Path) -> None:
    store.write("a/b/c", b"1")
    store.write("a/d", b"2")
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert not (root / "a/b").exists()
    assert (root / "a/d").exists()


def test_a_key_too_long_for_the_file_system_is_refused(store: Store) -> None:
    with pytest.raises(Refused, match="too long"):
        store.write("n" * 300, b"1")


def test_a_full_disk_is_told_as_such() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    from kubebooth_store.errors import files_named

    with (
        pytest.raises(Unavailable, match="disk is full"),
        files_named("model.safetensors"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_download_onto_a_folder_is_refused(store: Store, tmp_path: Path) -> None:
    store.write("a", b"1")
    with pytest.raises(Refused, match="is a folder"):
        store.download("a", tmp_path)


def test_a_pipe_is_no_file_to_upload(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Denied, match="no plain file"):
        store.upload(tmp_path / "pipe", "a")
    with pytest.raises(NotFound, match="missing"):
        store.upload(tmp_path / "missing", "a")
