"""Publishes a plan into a store while it is written: parts out, read back, then the manifest.

Nothing is visible as an artifact before the manifest stands, which comes last. It must not know
Runs or sessions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_api.artifacts import Manifest
from kubebooth_store import (
    Conflict,
    Entry,
    Store,
    StoreError,
    Writer,
    publish_uploaded,
    read_manifest,
)

from kubebooth_trainer.convert.door import Check, Copy, Plan, PlannedFile, Segment
from kubebooth_trainer.convert.memory import give_back_freed_buffers
from kubebooth_trainer.convert.proof.digests import Proof, check_source, prove
from kubebooth_trainer.convert.showing import proof_json
from kubebooth_trainer.convert.stored.sources import StoredFile
from kubebooth_trainer.convert.writing.computing import computed
from kubebooth_trainer.convert.writing.layouts import (
    Closing,
    Data,
    Layout,
    Literal,
    Room,
    layout_of,
)
from kubebooth_trainer.convert.writing.streams import Stream, read_ahead
from kubebooth_trainer.convert.writing.targets import OnBytes, Wish
from kubebooth_trainer.errors import InternalFault, WorkerError

PROOF = "proof.json"
"""File of an artifact that holds the digest of every tensor."""
_PIECE_BYTES = 1 << 20
_PROVERS = 3


@dataclass(frozen=True)
class Published:
    """What stands in the store now."""

    manifest: Manifest
    proof: Proof | None


def publish_plan(
    plan: Plan,
    store: Store,
    prefix: str,
    wish: Wish,
    *,
    checks: Iterable[Check],
    metadata: Mapping[str, Any],
    tell: OnBytes,
) -> Published:
    """Write, prove and publish a plan below a prefix. Raises `WorkerError` and store errors.

    What was sent before a failure is removed again; after a kill it is overwritten by the next
    try, and shown by neither.
    """
    if read_manifest(store, prefix) is not None:
        raise Conflict(
            f"{store.uri_of(prefix)} holds an artifact already; published content never changes,"
            " so choose another address"
        )
    give_back_freed_buffers()
    sent: dict[str, Entry] = {}
    digests: dict[tuple[str, str], str] = {}
    try:
        for file in plan.files:
            key = f"{prefix}/{file.path}"
            found = digests if wish.read_back else None
            sent[file.path] = _send(file, store, key, found, tell)
        proof = _proven(plan, store, sent, digests, wish, checks, tell)
        described = json.dumps(proof_json(plan, proof), separators=(",", ":")).encode()
        sent[PROOF] = store.write(f"{prefix}/{PROOF}", described, content_type="application/json")
        manifest = publish_uploaded(store, prefix, sent, kind="artifact", metadata=metadata)
    except (WorkerError, StoreError):
        _forget(store, prefix)
        raise
    return Published(manifest, proof)


def _proven(
    plan: Plan,
    store: Store,
    sent: dict[str, Entry],
    digests: Mapping[tuple[str, str], str],
    wish: Wish,
    checks: Iterable[Check],
    tell: OnBytes,
) -> Proof | None:
    check_source(checks, tell=lambda count: tell("Check", count))
    proof = None
    if wish.read_back:
        proof = prove(
            plan,
            lambda path: StoredFile(store, sent[path], name=path),
            finite=wish.finite,
            parallel=_PROVERS,
            piece_bytes=_PIECE_BYTES,
            tell=lambda count: tell("Prove", count),
            known=digests,
        )
    for path, entry in sent.items():
        if entry.sha256 is None:
            sha256 = _hashed(store, entry)
            sent[path] = Entry(entry.key, entry.size, entry.etag, sha256)
    return proof


def _forget(store: Store, prefix: str) -> None:
    """Remove what was sent, unless somebody published there meanwhile."""
    with contextlib.suppress(StoreError):
        if read_manifest(store, prefix) is None:
            store.delete_prefix(prefix)


def _hashed(store: Store, entry: Entry) -> str:
    """SHA-256 of what stands there, where it could not be taken in order."""
    hasher = hashlib.sha256()
    file = StoredFile(store, entry, name=entry.key)
    for piece in read_ahead((Segment(file, 0, entry.size),)):
        hasher.update(piece)
    return hasher.hexdigest()


def _send(
    file: PlannedFile,
    store: Store,
    key: str,
    digests: dict[tuple[str, str], str] | None,
    tell: OnBytes,
) -> Entry:
    """Send one file; `digests` takes in those of its tensors as they passed."""
    layout = layout_of(file)
    stream = Stream.of(layout)
    try:
        with store.writing(key, size=layout.size) as writer:
            sending = _Sending(
                writer, stream, lambda count: tell("Write", count), hashed=digests is not None
            )
            sending.send(layout)
    finally:
        stream.close()
    if digests is not None:
        digests.update({(file.path, name): digest for name, digest in sending.digests.items()})
    return writer.entry


class _Sending:
    """One file on its way into a store."""

    def __init__(
        self, writer: Writer, stream: Stream, tell: Callable[[int], None], *, hashed: bool
    ) -> None:
        self.digests: dict[str, str] = {}
        self._hashed = hashed
        self._writer = writer
        self._stream = stream
        self._tell = tell
        self._sums: list[int] = []
        self._room: int | None = None

    def send(self, layout: Layout) -> None:
        """Send all of a layout."""
        for step in layout.steps:
            if isinstance(step, Literal):
                self._put(step.data)
            elif isinstance(step, Room):
                self._room = self._writer.leave(step.size)
                self._tell(step.size)
            elif isinstance(step, Data):
                self._data(step)
            elif isinstance(step, Closing):
                self._put(step.made(self._sums))

    def _data(self, step: Data) -> None:
        copied = isinstance(step.tensor.data, Copy)
        pieces = self._stream.take(step.size) if copied else computed(step.tensor)
        hasher = hashlib.sha256()
        crc32 = total = 0
        for piece in pieces:
            if self._hashed:
                hasher.update(piece)
            if step.summed:
                crc32 = zlib.crc32(piece, crc32)
            total += len(piece)
            self._put(piece)
        if total != step.size:
            raise InternalFault(f"{step.tensor.name}: {total} of {step.size} bytes were computed")
        if step.summed and self._room is not None:
            self._writer.fill(self._room, crc32.to_bytes(4, "little"))
            self._sums.append(crc32)
            self._room = None
        if self._hashed:
            self.digests[step.tensor.name] = hasher.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        self._tell(len(data))
