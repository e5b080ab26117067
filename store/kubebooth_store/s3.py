"""A store on any S3 server: the verbs as requests; it must not know manifests or sessions."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from kubebooth_store import listing, multipart
from kubebooth_store.content import Facts, Part, md5_of, measure, open_plain, stamp_of
from kubebooth_store.downloading import save
from kubebooth_store.errors import Conflict, Corrupt, NotFound, Refused, Unsupported
from kubebooth_store.keys import check_key, check_prefix, check_span, join, key_below
from kubebooth_store.multipart import SINGLE_BYTES, part_bytes
from kubebooth_store.patience import Attempt, Transient, persist
from kubebooth_store.replies import Reply
from kubebooth_store.streaming import PartsWriter
from kubebooth_store.verbs import Entry, OnBytes
from kubebooth_store.windows import in_order
from kubebooth_store.wire import Body, Call, Wire

_NONCE = "x-amz-meta-kubebooth-write"


class S3Writer(PartsWriter):
    """A file on its way; see `verbs.Writer`."""

    def __init__(self, wire: Wire, full: str, key: str, *, size: int) -> None:
        super().__init__(wire, full, size=size)
        self._name = key
        self._entry: Entry | None = None

    def finish(self) -> None:
        """Show it."""
        tag, sha256 = self.complete()
        self._entry = Entry(self._name, self._size, tag, sha256)

    @property
    def entry(self) -> Entry:
        """What was stored."""
        if self._entry is None:
            raise Refused(f"{self._name} is not stored yet; end its block first")
        return self._entry


class S3Store:
    """Files of one bucket below one prefix; see `verbs.Store` for the promises."""

    def __init__(self, wire: Wire, *, prefix: str, parallel: int) -> None:
        self.wire = wire
        self._prefix = prefix
        self._parallel = parallel

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return join(f"s3://{self.wire.bucket}", self._prefix) if self._prefix else self._bucket_uri

    @property
    def _bucket_uri(self) -> str:
        return f"s3://{self.wire.bucket}"

    @property
    def parallel(self) -> int:
        """Transfers that may usefully run at once."""
        return self._parallel

    def uri_of(self, key: str) -> str:
        """Full address of a key or prefix."""
        return join(self.uri, check_prefix(key)) if key else self.uri

    def key_of(self, uri: str) -> str:
        """Key of an address below this store; `Refused` for another."""
        return key_below(self.uri, uri)

    def full(self, key: str) -> str:
        """The key as the bucket knows it."""
        return check_key(join(self._prefix, check_key(key)))

    def create_root(self) -> None:
        """Make the bucket when it is missing."""
        try:
            self.wire.send(Call("HEAD"))
        except NotFound:
            try:
                self.wire.send(Call("PUT"))
            except Conflict:
                # Someone else made it just now; whether it is usable, the next call tells.
                self.wire.send(Call("HEAD"))

    def stat(self, key: str) -> Entry | None:
        """The entry of a key, or None."""
        try:
            reply = self.wire.send(Call("HEAD", self.full(key)))
        except NotFound as error:
            if self._bucket_is_missing():
                raise NotFound(
                    f"bucket {self.wire.bucket!r} does not exist at {self.wire.endpoint}; "
                    "create it or correct its name"
                ) from error
            return None
        return self._entry(key, reply, reply.size)

    def _bucket_is_missing(self) -> bool:
        try:
            self.wire.send(Call("HEAD"))
        except NotFound:
            return True
        return False

    def list(self, prefix: str) -> Iterator[Entry]:
        """All entries below a prefix, sorted by the bytes of their keys."""
        below = join(self._prefix, check_prefix(prefix)).rstrip("/")
        for found in listing.entries(self.wire, f"{below}/" if below else ""):
            key = found.key[len(self._prefix) + 1 :] if self._prefix else found.key
            yield Entry(key, found.size, found.etag, None)

    def read(self, key: str, *, max_bytes: int) -> bytes:
        """Whole content; `Refused` when it is larger than `max_bytes`."""
        return self.read_entry(key, max_bytes=max_bytes)[0]

    def read_entry(self, key: str, *, max_bytes: int) -> tuple[bytes, Entry]:
        """Whole content and its entry, both of one version."""
        call = Call("GET", self.full(key), max_reply_bytes=max_bytes)
        what = self.wire.what(call)

        def once(_attempt: Attempt) -> Reply:
            reply = self.wire.send(call)
            if not reply.oversized and reply.sha256 not in {None, Body.of(reply.data).sha256}:
                raise Transient("the bytes are not those that were stored", corrupt=True)
            return reply

        reply = persist(once, patience=self.wire.patience, what=what)
        if reply.oversized:
            raise Refused(f"{what}: larger than the {max_bytes} bytes allowed; download it instead")
        return reply.data, self._entry(key, reply, len(reply.data))

    def write(
        self,
        key: str,
        data: bytes,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        content_type: str | None = None,
    ) -> Entry:
        """Replace a key as a whole; `Conflict` when the condition does not hold."""
        if if_absent and if_match is not None:
            raise Refused("if_absent and if_match exclude each other")
        body = Body.of(data)
        headers = {
            "content-type": content_type or "application/octet-stream",
            "x-amz-meta-sha256": body.sha256,
        }
        if if_absent:
            headers["If-None-Match"] = "*"
        if if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        if if_absent or if_match is not None:
            return self._write_if(key, headers, body)
        return self._entry_sent(key, body, self._put(key, headers, body))

    def _put(self, key: str, headers: Mapping[str, str], body: Body) -> Reply:
        return self.wire.send(Call("PUT", self.full(key), headers=headers, body=body))

    def _write_if(self, key: str, headers: Mapping[str, str], body: Body) -> Entry:
        """A conditional put whose answer may get lost: a mark tells our own earlier try."""
        nonce = uuid.uuid4().hex
        try:
            reply = self._put(key, {**headers, _NONCE: nonce}, body)
        except (Conflict, NotFound) as error:
            there = self._head(key)
            if there is not None and there.headers.get(_NONCE) == nonce:
                return self._entry(key, there, body.size)
            if isinstance(error, NotFound) and "If-Match" in headers:
                raise Conflict(f"{self.uri_of(key)} was removed meanwhile; decide anew") from error
            raise
        return self._entry_sent(key, body, reply)

    def _head(self, key: str) -> Reply | None:
        try:
            return self.wire.send(Call("HEAD", self.full(key)))
        except NotFound:
            return None

    def open_range(self, key: str, *, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`."""
        if start < 0 or length < 0:
            raise Refused(f"range {start}+{length} of {key!r} is negative")
        there = self.stat(key)
        if there is None:
            raise NotFound(f"{self.uri_of(key)} does not exist")
        length = max(0, min(length, there.size - start))
        return b"".join(self._range(there, start, length))

    def _range(self, entry: Entry, start: int, length: int) -> tuple[bytes, ...]:
        """Bytes of one version of a key; `Conflict` when it was replaced meanwhile."""
        if length == 0:
            return ()
        headers = {"Range": f"bytes={start}-{start + length - 1}", "If-Match": f'"{entry.etag}"'}
        call = Call(
            "GET",
            self.full(entry.key),
            headers=headers,
            max_reply_bytes=length,
        )
        what = self.wire.what(call)

        def once(_attempt: Attempt) -> tuple[bytes, ...]:
            reply = self.wire.send(call)
            if reply.status != 206 and (start, length) != (0, entry.size):
                raise Unsupported(f"{what}: the server ignores Range; probe it, use another")
            if reply.length != length:
                raise Transient(f"{reply.length} of {length} bytes arrived")
            return reply.pieces

        return persist(once, patience=self.wire.patience, what=what)

    def read_at(self, entry: Entry, *, start: int, length: int) -> bytes:
        """Exactly `length` bytes of just this version; `Conflict` when it was replaced."""
        check_span(entry, start, length)
        return b"".join(self._range(entry, start, length))

    @contextlib.contextmanager
    def writing(self, key: str, *, size: int) -> Iterator[S3Writer]:
        """Make a file while it is stored; it is shown when the block ends well."""
        writer = S3Writer(self.wire, self.full(key), key, size=size)
        try:
            yield writer
            writer.finish()
        finally:
            writer.abort()

    def download(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        size: int | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Entry:
        """Put a file at `path`, verified and by rename; a second call resumes a broken one."""
        entry = self.stat(key)
        if entry is None:
            raise NotFound(f"{self.uri_of(key)} does not exist")
        return save(
            lambda start, length: self._range(entry, start, length),
            entry,
            path,
            what=self.uri_of(key),
            parallel=self._parallel,
            sha256=sha256,
            size=size,
            on_bytes=on_bytes,
        )

    def upload(
        self,
        path: Path,
        key: str,
        *,
        sha256: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Entry:
        """Store a file; skips what is there, resumes what was begun."""
        tell = on_bytes or (lambda _count: None)
        descriptor = open_plain(path)
        try:
            facts = measure(descriptor, part_bytes=part_bytes)
            if sha256 not in {None, facts.sha256}:
                raise Corrupt(f"{path} is not what was asked to store: its SHA-256 differs")
            there = self.stat(key)
            if there is not None and _same(there, facts, descriptor):
                tell(facts.size)
                return there
            if facts.size > SINGLE_BYTES:
                sender = multipart.Sender(self.wire, self.full(key), descriptor, facts)
                sender.send(parallel=self._parallel, tell=tell)
                return self._shown(key, facts)
            (part,) = facts.parts
            headers = {
                "content-type": "application/octet-stream",
                "x-amz-meta-sha256": facts.sha256,
            }
            body = multipart.body_of(descriptor, part)
            reply = self._put(key, headers, body)
            if stamp_of(descriptor) != facts.stamp:
                raise Corrupt(f"{path} changed while it was stored; store it again")
            tell(facts.size)
            return self._entry_sent(key, body, reply)
        finally:
            os.close(descriptor)

    def _shown(self, key: str, facts: Facts) -> Entry:
        entry = self.stat(key)
        if entry is None or (entry.size, entry.sha256) != (facts.size, facts.sha256):
            raise Conflict(f"{self.uri_of(key)} is not what was just stored; someone overwrote it")
        return entry

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""
        try:
            self.wire.send(Call("DELETE", self.full(key)))
        except NotFound:
            return

    def delete_prefix(self, prefix: str) -> int:
        """Remove all below a prefix, manifests and pointers first; how many keys went."""
        keys = [entry.key for entry in self.list(prefix)]
        first = [key for key in keys if listing.is_index(key)]
        rest = [key for key in keys if not listing.is_index(key)]
        for group in (first, rest):
            for _ in in_order(self.delete, group, parallel=self._parallel):
                pass
        below = join(self._prefix, check_prefix(prefix)).rstrip("/")
        for upload in listing.uploads(self.wire, f"{below}/" if below else ""):
            multipart.abort(self.wire, upload)
        return len(keys)

    def _entry(self, key: str, reply: Reply, size: int) -> Entry:
        if size < 0:
            raise Corrupt(f"{self.uri_of(key)}: the server tells no length; is this an S3 server?")
        return Entry(key, size, reply.etag, reply.sha256)

    def _entry_sent(self, key: str, body: Body, reply: Reply) -> Entry:
        return Entry(key, body.size, reply.etag, body.sha256)


def _same(there: Entry, facts: Facts, descriptor: int) -> bool:
    """Whether stored bytes are a file's: size, kept SHA-256, and the version tag if it is an MD5.

    The kept SHA-256 alone proves nothing: an upload that was begun for other bytes may carry it.
    """
    if (there.size, there.sha256) != (facts.size, facts.sha256):
        return False
    digest, dash, count = there.etag.partition("-")
    if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):
        return True
    if not dash:
        return md5_of(descriptor, Part(1, 0, facts.size, "")) == digest
    if count != str(len(facts.parts)):
        return False
    return multipart.joint_tag(md5_of(descriptor, part) for part in facts.parts) == there.etag
