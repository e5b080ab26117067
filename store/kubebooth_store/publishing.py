"""A folder of files becomes a published one: all files first, the manifest last, and only once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import FileEntry, Manifest, files_digest
from kubebooth_api.digests import canonical_json
from pydantic import ValidationError

from kubebooth_store.content import file_sha256, hash_of
from kubebooth_store.errors import Conflict, Corrupt, NotFound, Refused, files_named
from kubebooth_store.keys import check_key, check_prefix, join
from kubebooth_store.verbs import Entry, OnBytes, Store
from kubebooth_store.windows import in_order

MAX_FILES = 100_000
_MAX_MANIFEST_BYTES = 64 << 20
_LARGE_BYTES = 16 << 20


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """The manifest of a prefix, or None when nothing is published there.

    Raises `Corrupt` when there is one that is malformed or was altered.
    """
    key = join(check_prefix(prefix), layout.MANIFEST)
    try:
        data = store.read(key, max_bytes=_MAX_MANIFEST_BYTES)
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Corrupt(
            f"{store.uri_of(key)} is no valid manifest ({where}: {first['msg']}); publish it again"
        ) from error


def publish(
    store: Store,
    prefix: str,
    folder: Path,
    *,
    kind: str,
    metadata: Mapping[str, Any] | None = None,
    on_bytes: OnBytes | None = None,
) -> Manifest:
    """Publish all plain files of a folder; see `publish_files`. Raises `Refused` for links."""
    return publish_files(
        store, prefix, files_of(folder), kind=kind, metadata=metadata, on_bytes=on_bytes
    )


def publish_files(
    store: Store,
    prefix: str,
    files: Mapping[str, Path | bytes],
    *,
    kind: str,
    metadata: Mapping[str, Any] | None = None,
    on_bytes: OnBytes | None = None,
) -> Manifest:
    """Upload files by relative path, check that all are there, then write the manifest.

    Publishing the same content again is a success and gives the manifest that is there; other
    content under a published prefix is a `Conflict` and touches nothing. A killed publish leaves
    no manifest, so nothing is visible, and the next one reuses what was uploaded.
    """
    prefix = check_prefix(prefix)
    _check_names(files)
    _manifest((), kind=kind, metadata=metadata)  # refuses both before anything is sent
    published = read_manifest(store, prefix)
    if published is not None and published.digest != files_digest(_measured(files)):
        raise _taken(store, prefix, published)
    uploaded = _send_all(store, prefix, files, on_bytes or (lambda _count: None))
    _check_stored(store, prefix, uploaded)
    if published is not None:
        return published
    rows = tuple(_row(path, entry.size, entry.sha256) for path, entry in sorted(uploaded.items()))
    return _seal(store, prefix, _manifest(rows, kind=kind, metadata=metadata))


def publish_uploaded(
    store: Store,
    prefix: str,
    uploaded: Mapping[str, Entry],
    *,
    kind: str,
    metadata: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the manifest over files that already stand below the prefix, by relative path.

    For what is too large to be whole on one disk: send the files one by one, then call this. Each
    entry must know its SHA-256. Equal content that is published already is a success, other content
    a `Conflict`; `Conflict` too when the store no longer shows what the entries say.
    """
    prefix = check_prefix(prefix)
    _check_names(dict.fromkeys(uploaded, b""))
    nameless = [path for path, entry in uploaded.items() if entry.sha256 is None]
    if nameless:
        raise Refused(f"{nameless[0]}: its SHA-256 is not known; send it again")
    rows = tuple(_row(path, entry.size, entry.sha256) for path, entry in sorted(uploaded.items()))
    published = read_manifest(store, prefix)
    if published is not None and published.digest != files_digest(rows):
        raise _taken(store, prefix, published)
    _check_stored(store, prefix, uploaded)
    if published is not None:
        return published
    return _seal(store, prefix, _manifest(rows, kind=kind, metadata=metadata))


def files_of(folder: Path) -> dict[str, Path]:
    """All plain files below a folder by relative path; hidden part files of downloads left out.

    Raises `Refused` for links and special files, `NotFound` when the folder is missing.
    """
    found: dict[str, Path] = {}
    with files_named(folder):
        pending = [folder]
        while pending:
            with os.scandir(pending.pop()) as rows:
                for row in rows:
                    _sort_in(row, folder, pending, found)
    return found


def _sort_in(
    row: os.DirEntry[str], folder: Path, pending: list[Path], found: dict[str, Path]
) -> None:
    path = Path(row.path)
    if row.is_symlink() or not (row.is_file() or row.is_dir()):
        raise Refused(f"{path} is a link or special file; copy the file itself there")
    if row.is_dir():
        pending.append(path)
    elif not (row.name.startswith(".kubebooth-") and row.name.endswith(".part")):
        found[path.relative_to(folder).as_posix()] = path


def _check_names(files: Mapping[str, Path | bytes]) -> None:
    if not files:
        raise Refused("there is no file to publish")
    if len(files) > MAX_FILES:
        raise Refused(f"{len(files)} files are more than the {MAX_FILES} a manifest may list")
    for path in files:
        check_key(path)
    if layout.MANIFEST in files:
        raise Refused(f"{layout.MANIFEST} is written by publishing; rename or remove the file")


def _manifest(
    rows: tuple[FileEntry, ...], *, kind: str, metadata: Mapping[str, Any] | None
) -> Manifest:
    try:
        return Manifest.model_validate(
            {
                "kind": kind,
                "digest": files_digest(rows),
                "files": rows,
                "created_at": datetime.now(UTC),
                "metadata": json.loads(canonical_json(dict(metadata or {}))),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Refused(f"{first['loc'][0]} {kind!r}: {first['msg']}") from error
    except (TypeError, ValueError) as error:
        raise Refused(f"metadata is not plain JSON: {error}") from error


def _row(path: str, size: int, sha256: str | None) -> FileEntry:
    return FileEntry(path=path, size=size, sha256=sha256 or "")


def _measured(files: Mapping[str, Path | bytes]) -> tuple[FileEntry, ...]:
    """What the manifest of local files would list."""
    rows = []
    for path, file in files.items():
        if isinstance(file, bytes):
            rows.append(_row(path, len(file), hash_of([file])))
            continue
        with files_named(file):
            rows.append(_row(path, file.stat().st_size, file_sha256(file)))
    return tuple(rows)


def _send_all(
    store: Store, prefix: str, files: Mapping[str, Path | bytes], tell: OnBytes
) -> dict[str, Entry]:
    """Upload everything: small files side by side, large ones one by one, each in parts."""
    uploaded: dict[str, Entry] = {}

    def send_small(path: str) -> tuple[str, Entry]:
        file, key = files[path], join(prefix, path)
        if isinstance(file, bytes):
            return path, store.write(key, file)
        return path, store.upload(file, key)

    with_sizes = {path: _size(file) for path, file in sorted(files.items())}
    small = [path for path, size in with_sizes.items() if size <= _LARGE_BYTES]
    for path, entry in in_order(send_small, small, parallel=store.parallel):
        uploaded[path] = entry
        tell(entry.size)
    for path, file in sorted(files.items()):
        if path in uploaded:
            continue
        key = join(prefix, path)
        if isinstance(file, bytes):
            uploaded[path] = store.write(key, file)
            tell(len(file))
        else:
            uploaded[path] = store.upload(file, key, on_bytes=tell)
    return uploaded


def _size(file: Path | bytes) -> int:
    if isinstance(file, bytes):
        return len(file)
    with files_named(file):
        return file.stat().st_size


def _check_stored(store: Store, prefix: str, uploaded: Mapping[str, Entry]) -> None:
    """Look once more that the store shows each file in the version that was acknowledged."""
    there = {entry.key: (entry.size, entry.etag) for entry in store.list(prefix)}
    for path, entry in uploaded.items():
        if there.get(join(prefix, path)) != (entry.size, entry.etag):
            raise Conflict(
                f"{store.uri_of(join(prefix, path))} is not what was just uploaded; "
                "let only one writer publish there and try again"
            )


def _seal(store: Store, prefix: str, manifest: Manifest) -> Manifest:
    """Write the manifest if there is none; an equal one that came first is as good."""
    key = join(prefix, layout.MANIFEST)
    data = manifest.model_dump_json(by_alias=True, indent=1).encode()
    try:
        store.write(key, data, if_absent=True, content_type="application/json")
    except Conflict:
        winner = read_manifest(store, prefix)
        if winner is None or winner.digest != manifest.digest:
            raise
        return winner
    return manifest


def _taken(store: Store, prefix: str, published: Manifest) -> Conflict:
    return Conflict(
        f"{store.uri_of(prefix)} already holds {published.kind} {published.digest[:19]}…; "
        "published content never changes, so choose another prefix"
    )
