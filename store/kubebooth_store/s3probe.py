"""The part of the probe that only a server needs: signatures, content checks, parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kubebooth_store import listing, multipart
from kubebooth_store.content import Part
from kubebooth_store.errors import Denied, NotFound, StoreError, Unavailable
from kubebooth_store.keys import join
from kubebooth_store.s3 import S3Store
from kubebooth_store.wire import Body, Call, Keys


@dataclass(frozen=True)
class Remote:
    """What was found about a server; a folder has all of it by its nature."""

    signature_checked: bool
    content_checked: bool
    multipart: bool
    multipart_resume: bool
    keeps_metadata: bool


def try_all(store: S3Store, plain: str, below: str) -> Remote:
    """Try a server with a key that exists and others below a prefix."""
    kept = store.stat(plain)
    takes, resumes = _takes_parts(store, join(below, "parts"))
    return Remote(
        signature_checked=_checks_signature(store, plain),
        content_checked=_checks_content(store, join(below, "content")),
        multipart=takes,
        multipart_resume=resumes,
        keeps_metadata=kept is not None and kept.sha256 is not None,
    )


def _checks_signature(store: S3Store, key: str) -> bool:
    call = Call("GET", store.full(key))
    try:
        store.wire.send(call, keys=Keys("kubebooth-nobody", "kubebooth-nothing"))
    except (Denied, NotFound):
        return _refuses_strangers(store, call)
    except StoreError:
        return False
    return False


def _refuses_strangers(store: S3Store, call: Call) -> bool:
    try:
        store.wire.send(call, anonymous=True)
    except StoreError:
        return True
    return False


def _checks_content(store: S3Store, key: str) -> bool:
    told = hashlib.sha256(b"other").hexdigest()
    try:
        store.wire.send(Call("PUT", store.full(key), body=Body(5, told, b"bytes")))
    except Unavailable:
        raise
    except StoreError:
        return True
    return False


def _takes_parts(store: S3Store, key: str) -> tuple[bool, bool]:
    """Whether an upload in parts works, and whether it can be found again when it is unfinished."""
    data = b"part"
    try:
        begun = multipart.begin(store.wire, store.full(key), {})
        reply = store.wire.send(
            Call(
                "PUT",
                begun.key,
                query={"partNumber": "1", "uploadId": begun.id},
                body=Body.of(data),
            )
        )
        resumes = _lists(store, begun, data)
        part = Part(1, 0, len(data), hashlib.sha256(data).hexdigest())
        multipart.complete(store.wire, begun, [part], {1: reply.etag})
        return store.read(key, max_bytes=100) == data, resumes
    except (Unavailable, Denied):
        raise
    except StoreError:
        return False, False


def _lists(store: S3Store, begun: listing.Upload, data: bytes) -> bool:
    tag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    try:
        shown = begun in listing.uploads(store.wire, begun.key)
        return shown and listing.parts(store.wire, begun) == {1: (len(data), tag)}
    except StoreError:
        return False
