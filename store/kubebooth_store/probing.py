"""What a store can and cannot do, found out by trying, and said in sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from kubebooth_store import s3probe
from kubebooth_store.errors import Conflict, Denied, NotFound, StoreError, Unavailable
from kubebooth_store.keys import join
from kubebooth_store.s3 import S3Store
from kubebooth_store.verbs import Store

PREFIX = "kubebooth-probe"

_LACKS = {
    "conditional_create": "does not refuse a second conditional create (If-None-Match: *): two "
    "writers can publish over each other, so run one worker per session only",
    "conditional_replace": "does not refuse a stale conditional replace (If-Match): pointers to "
    "the newest artifact can go back, so read artifacts by digest",
    "signature_checked": "does not check signatures: anyone who reaches it can read and write, "
    "so fence it off by a network policy or use another server",
    "content_checked": "does not check the SHA-256 of what it is sent: bytes damaged on their "
    "way are noticed on reading only",
    "multipart": "takes no multipart uploads: files over 16 MiB cannot be stored",
    "multipart_resume": "does not list unfinished uploads: a killed upload starts anew",
    "ranged_reads": "ignores Range: files over 8 MiB cannot be fetched",
    "list_after_write": "does not list a key right after it was written: publishing fails",
    "keeps_metadata": "does not keep user metadata: files already there are uploaded again",
    "delete": "does not delete: data that is no longer wanted stays",
}


@dataclass(frozen=True)
class Capabilities:
    """What was found; all true for a store on which every promise holds."""

    conditional_create: bool
    conditional_replace: bool
    signature_checked: bool
    content_checked: bool
    multipart: bool
    multipart_resume: bool
    ranged_reads: bool
    list_after_write: bool
    keeps_metadata: bool
    delete: bool

    def sentences(self) -> tuple[str, ...]:
        """What is lacking and what follows from it, a sentence each; empty when nothing is."""
        return tuple(
            f"The store {_LACKS[field.name]}."
            for field in dataclasses.fields(self)
            if not getattr(self, field.name)
        )


def probe(store: Store) -> Capabilities:
    """Try a store under a prefix of its own below `kubebooth-probe/` and clean up.

    Raises `Unavailable`, `Denied` or `NotFound` when it cannot be used at all.
    """
    below = join(PREFIX, uuid.uuid4().hex)
    plain = join(below, "plain")
    store.write(plain, b"0123456789")
    try:
        remote = (
            s3probe.try_all(store, plain, below)
            if isinstance(store, S3Store)
            else s3probe.Remote(True, True, True, True, True)
        )
        return Capabilities(
            conditional_create=_works(lambda: _creates_once(store, join(below, "create"))),
            conditional_replace=_works(lambda: _replaces_fresh(store, join(below, "replace"))),
            signature_checked=remote.signature_checked,
            content_checked=remote.content_checked,
            multipart=remote.multipart,
            multipart_resume=remote.multipart_resume,
            ranged_reads=_works(lambda: store.open_range(plain, start=3, length=4) == b"3456"),
            list_after_write=_works(lambda: any(e.key == plain for e in store.list(below))),
            keeps_metadata=remote.keeps_metadata,
            delete=_works(lambda: _deletes(store, join(below, "delete"))),
        )
    finally:
        with contextlib.suppress(StoreError):
            store.delete_prefix(below)


def _works(trial: Callable[[], bool]) -> bool:
    """The outcome of a trial; what the server does not know counts as lacking."""
    try:
        return trial()
    except (Unavailable, Denied, NotFound):
        raise
    except StoreError:
        return False


def _creates_once(store: Store, key: str) -> bool:
    store.write(key, b"first", if_absent=True)
    try:
        store.write(key, b"second", if_absent=True)
    except Conflict:
        return store.read(key, max_bytes=100) == b"first"
    return False


def _replaces_fresh(store: Store, key: str) -> bool:
    old = store.write(key, b"first")
    store.write(key, b"second", if_match=old.etag)
    try:
        store.write(key, b"third", if_match=old.etag)
    except Conflict:
        return store.read(key, max_bytes=100) == b"second"
    return False


def _deletes(store: Store, key: str) -> bool:
    store.write(key, b"gone")
    store.delete(key)
    return store.stat(key) is None
