"""A published folder becomes a local one: the manifest is checked first, then every file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubebooth_api import layout
from kubebooth_api.artifacts import FileEntry, Manifest

from kubebooth_store.content import file_sha256, sync_folder
from kubebooth_store.errors import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Refused,
    Unavailable,
    files_named,
)
from kubebooth_store.keys import check_key, check_prefix, join
from kubebooth_store.publishing import read_manifest
from kubebooth_store.verbs import OnBytes, Store
from kubebooth_store.windows import in_order

_LARGE_BYTES = 16 << 20


def fetch(
    store: Store,
    prefix: str,
    folder: Path,
    *,
    expect_digest: str | None = None,
    max_bytes: int | None = None,
    on_bytes: OnBytes | None = None,
) -> Manifest:
    """Bring a published prefix into a folder, every file verified by size and SHA-256.

    A folder that does not exist appears complete, by rename; into one that exists the files
    come one by one, those already right are kept, and files not in the manifest are left alone.
    A killed fetch is resumed by the next.

    Raises `NotFound` when nothing is published there, `Corrupt` when manifest or bytes are not
    true, `Refused` when there is more than `max_bytes`, `Unavailable` when the disk is too small,
    `Conflict` when another process fetches into the same folder.
    """
    prefix = check_prefix(prefix)
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise NotFound(f"nothing is published at {store.uri_of(prefix)}: it has no manifest")
    check_manifest(manifest, what=store.uri_of(prefix))
    if expect_digest is not None and manifest.digest != expect_digest:
        raise Corrupt(
            f"{store.uri_of(prefix)} holds {manifest.digest[:19]}… instead of "
            f"{expect_digest[:19]}…; point to the right prefix or publish it again"
        )
    if max_bytes is not None and manifest.size_bytes > max_bytes:
        raise Refused(
            f"{store.uri_of(prefix)} has {manifest.size_bytes} bytes, more than the {max_bytes} "
            "allowed; raise the limit if you trust it"
        )
    with files_named(folder):
        _bring(store, prefix, manifest, folder, on_bytes or (lambda _count: None))
    return manifest


def check_manifest(manifest: Manifest, *, what: str) -> None:
    """Raise `Corrupt` when the paths of a manifest cannot all be files of one folder."""
    seen: set[str] = set()
    for file in manifest.files:
        try:
            check_key(file.path)
        except Refused as error:
            raise Corrupt(f"{what}: the manifest lists a bad path: {error}") from error
        if file.path in seen or file.path == layout.MANIFEST:
            raise Corrupt(f"{what}: the manifest lists {file.path!r} twice or lists itself")
        seen.add(file.path)
    for path in seen:
        parts = path.split("/")
        if any("/".join(parts[:count]) in seen for count in range(1, len(parts))):
            raise Corrupt(f"{what}: the manifest lists {path!r} below another file")


def _bring(store: Store, prefix: str, manifest: Manifest, folder: Path, tell: OnBytes) -> None:
    if folder.is_symlink():
        raise Denied(f"{folder} is a link; name the folder itself")
    if folder.exists():
        _fill(store, prefix, manifest, folder, tell)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name[:200]}.fetching"
    staging.mkdir(exist_ok=True)
    with _alone_in(staging):
        wanted = {file.path for file in manifest.files}
        _clear_strangers(staging, wanted, keep_parts=True)
        _fill(store, prefix, manifest, staging, tell)
        _clear_strangers(staging, wanted, keep_parts=False)
        _appear(staging, folder)


def _appear(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError as error:
        raise Conflict(f"{folder} was made by someone else meanwhile; fetch again") from error
    sync_folder(folder.parent)


@contextmanager
def _alone_in(staging: Path) -> Iterator[None]:
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Conflict(f"another process fetches into {staging}; wait for it") from error
    finally:
        os.close(descriptor)


def _clear_strangers(staging: Path, wanted: set[str], *, keep_parts: bool) -> None:
    """Remove what an earlier fetch of other content left in our own staging folder."""
    for folder, folders, names in os.walk(staging, topdown=False):
        for name in names:
            path = Path(folder, name)
            part = name.startswith(".kubebooth-") and name.endswith(".part")
            if path.relative_to(staging).as_posix() not in wanted and not (part and keep_parts):
                path.unlink()
        for name in folders:
            with contextlib.suppress(OSError):  # one that is not empty stays
                Path(folder, name).rmdir()


def _fill(store: Store, prefix: str, manifest: Manifest, folder: Path, tell: OnBytes) -> None:
    missing: list[FileEntry] = []
    for file in manifest.files:
        _check_inside(folder, file.path)
        if _is_right(folder / file.path, file):
            tell(file.size)
        else:
            missing.append(file)
    _check_room(folder, missing)

    def bring_small(file: FileEntry) -> FileEntry:
        _download(store, prefix, folder, file, None)
        return file

    small = [file for file in missing if file.size <= _LARGE_BYTES]
    for file in in_order(bring_small, small, parallel=store.parallel):
        tell(file.size)
    for file in missing:
        if file.size > _LARGE_BYTES:
            _download(store, prefix, folder, file, tell)


def _download(
    store: Store, prefix: str, folder: Path, file: FileEntry, tell: OnBytes | None
) -> None:
    key = join(prefix, file.path)
    try:
        store.download(key, folder / file.path, sha256=file.sha256, size=file.size, on_bytes=tell)
    except NotFound as error:
        raise Corrupt(
            f"{store.uri_of(key)} is listed in the manifest but missing; publish it again"
        ) from error


def _check_inside(folder: Path, path: str) -> None:
    """Raise `Denied` when a link inside the folder would lead a file elsewhere."""
    place = folder
    for part in path.split("/")[:-1]:
        place = place / part
        if place.is_symlink():
            raise Denied(f"{place} is a link; remove it or fetch into another folder")


def _is_right(path: Path, file: FileEntry) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    return file_sha256(path) == file.sha256


def _check_room(folder: Path, missing: Iterable[FileEntry]) -> None:
    needed = sum(file.size for file in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Unavailable(
            f"{folder} needs {needed} bytes and the disk has {free}; enlarge the volume"
        )
