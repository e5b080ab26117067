"""Opens what stands in a store: a published folder, a folder without a manifest, or one object.

It must not know what a conversion is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubebooth_api.artifacts import UNKNOWN_DIGEST
from kubebooth_api.digests import digest_json
from kubebooth_store import Entry, Store, read_manifest

from kubebooth_trainer.convert.door import Bytes, Check, Opened, Plan, Planned, Segment
from kubebooth_trainer.convert.door import Copy as Copied
from kubebooth_trainer.convert.formats.opening import open_single, open_tree
from kubebooth_trainer.convert.formats.places import checked_files
from kubebooth_trainer.errors import ConfigurationError, DataError

_HEAD_BYTES = 256 << 10
_SMALL_BYTES = 64 << 10


class StoredFile:
    """A file of a store in the version that was seen; see `door.Bytes`.

    Its beginning is kept after the first look, as headers are read in several small pieces.
    """

    def __init__(self, store: Store, entry: Entry, *, name: str) -> None:
        self._store = store
        self.entry = entry
        self._name = name
        self._head: bytes | None = None

    @property
    def name(self) -> str:
        """What to call it towards the user."""
        return self._name

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.entry.size

    @property
    def descriptor(self) -> int | None:
        """There is none."""
        return None

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises `DataError` outside of it, store errors."""
        if start < 0 or length < 0 or start + length > self.size:
            raise DataError(
                f"{self._name} ends at byte {self.size}, in the middle of what it must hold: it"
                " was cut off; store it again",
                reason="TruncatedFile",
            )
        if start + length <= min(_HEAD_BYTES, self.size) and length <= _SMALL_BYTES:
            if self._head is None:
                head_bytes = min(_HEAD_BYTES, self.size)
                self._head = self._store.read_at(self.entry, start=0, length=head_bytes)
            return self._head[start : start + length]
        return self._store.read_at(self.entry, start=start, length=length)


@dataclass(frozen=True)
class StoredFolder:
    """Files below a prefix."""

    store: Store
    prefix: str
    files: Mapping[str, int]
    sha256: Mapping[str, str] = field(default_factory=dict)
    """What a manifest says of them."""

    @property
    def name(self) -> str:
        """What to call it towards the user."""
        return self.store.uri_of(self.prefix)

    def open(self, path: str) -> Bytes:
        """One of `files`, as it stands there now. Raises `DataError` when it is another by now."""
        key = f"{self.prefix}/{path}" if self.prefix else path
        entry = self.store.stat(key)
        if entry is None or entry.size != self.files[path]:
            raise DataError(
                f"{self.store.uri_of(key)} is not what its manifest says; publish it again",
                reason="DamagedSource",
            )
        sha256 = self.sha256.get(path)
        if sha256 is not None:
            entry = Entry(key, entry.size, entry.etag, sha256)
        return StoredFile(self.store, entry, name=path)


@dataclass(frozen=True)
class Source:
    """What was opened, and the digest that names its content."""

    opened: Opened
    digest: str


def open_stored(
    store: Store, key: str, *, expect: str = UNKNOWN_DIGEST, weights: str | None = None
) -> Source:
    """Open a model of a store. Raises `DataError`, `ConfigurationError` and store errors.

    A folder with another digest than `expect` is refused. Small files of a manifest are verified
    here; weights are by `promises_of`, as their bytes pass only later.
    """
    manifest = read_manifest(store, key)
    if manifest is not None:
        if expect not in {UNKNOWN_DIGEST, manifest.digest}:
            raise DataError(
                f"{store.uri_of(key)} holds {manifest.digest[:19]}… instead of {expect[:19]}…;"
                " point to the right one",
                reason="SourceChanged",
            )
        folder = StoredFolder(
            store,
            key,
            checked_files({row.path: row.size for row in manifest.files}, store.uri_of(key)),
            {row.path: row.sha256 for row in manifest.files},
        )
        opened = open_tree(folder, weights=weights)
        for path, text in opened.texts.items():
            if hashlib.sha256(text).hexdigest() != folder.sha256.get(path):
                raise DataError(f"{store.uri_of(key)}/{path} is damaged; publish it again",
                                reason="DamagedSource")  # fmt: skip
        return Source(opened, manifest.digest)
    entry = store.stat(key)
    if entry is not None:
        return _single(store, entry, weights)
    files = {row.key[len(key) + 1 :]: row for row in store.list(key)}
    if not files:
        raise ConfigurationError(
            f"{store.uri_of(key)} does not exist; name a model of this store",
            reason="SourceNotFound",
        )
    sizes = checked_files({path: row.size for path, row in files.items()}, store.uri_of(key))
    opened = open_tree(StoredFolder(store, key, sizes), weights=weights)
    versions = [[path, row.size, row.etag] for path, row in sorted(files.items())]
    return Source(opened, digest_json(versions))


def _single(store: Store, entry: Entry, weights: str | None) -> Source:
    del weights  # one file has no variants
    name = entry.key.rpartition("/")[2]
    yaml_key = f"{entry.key.rpartition('.')[0]}.yaml"
    yaml = store.stat(yaml_key) if "." in name else None
    beside = StoredFile(store, yaml, name=yaml_key.rpartition("/")[2]) if yaml else None
    opened = open_single(StoredFile(store, entry, name=name), beside=beside)
    known = f"sha256:{entry.sha256}" if entry.sha256 else None
    return Source(opened, known or digest_json([entry.key, entry.size, entry.etag]))


def promises_of(plan: Plan) -> tuple[Check, ...]:
    """What manifests say of the stored files that a plan reads from."""
    found: dict[int, StoredFile] = {}
    for file in plan.files:
        for planned in file.tensors:
            for segment in segments_of(planned):
                if isinstance(segment.source, StoredFile):
                    found[id(segment.source)] = segment.source
    return tuple(
        Check(Segment(file, 0, file.size), sha256=file.entry.sha256)
        for file in found.values()
        if file.entry.sha256
    )


def segments_of(planned: Planned) -> tuple[Segment, ...]:
    """Every run of bytes that a planned tensor is made from."""
    if isinstance(planned.data, Copied):
        return planned.data.segments
    return tuple(segment for tensor in planned.data.inputs for segment in tensor.segments)
