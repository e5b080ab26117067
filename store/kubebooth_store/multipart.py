"""A large file in parts: bounded memory, several at once, and resumed after a kill.

The server's own list of unfinished uploads is the memory of what was sent, so any process with
the same file can go on. Nothing is visible before the last request completes the upload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from kubebooth_store import listing
from kubebooth_store.content import Facts, Part, blocks, md5_of, stamp_of
from kubebooth_store.errors import Conflict, Corrupt, NotFound, Refused, Unsupported
from kubebooth_store.listing import Upload
from kubebooth_store.replies import text_of
from kubebooth_store.verbs import OnBytes
from kubebooth_store.windows import in_order
from kubebooth_store.wire import Body, Call, Wire, base64_of

SINGLE_BYTES = 16 << 20
_PART_BYTES = 16 << 20
_MAX_PARTS = 10_000
_BEGINNINGS = 3


def part_bytes(size: int) -> int:
    """Part size for a file: 16 MiB, or what keeps it within 10,000 parts; small files are one."""
    if size <= SINGLE_BYTES:
        return SINGLE_BYTES
    mib = 1 << 20
    return max(_PART_BYTES, -(-size // (_MAX_PARTS * mib)) * mib)


@dataclass
class _Slice:
    """A part of an open file as something to read."""

    descriptor: int
    part: Part

    def __post_init__(self) -> None:
        self._left = b""
        self._blocks = blocks(self.descriptor, start=self.part.start, size=self.part.size)

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b'' at the end."""
        if not self._left:
            self._left = next(self._blocks, b"")
        given, self._left = self._left[:size], self._left[size:]
        return given


def body_of(descriptor: int, part: Part) -> Body:
    """A part as a request body, streamed from the file."""
    return Body(part.size, part.sha256, lambda: _Slice(descriptor, part))


def joint_tag(tags: Iterable[str]) -> str:
    """The version tag S3 gives a completed upload: MD5 of the parts' MD5s and their number."""
    raw = [bytes.fromhex(tag) for tag in tags]
    return f"{hashlib.md5(b''.join(raw), usedforsecurity=False).hexdigest()}-{len(raw)}"


def abort(wire: Wire, upload: Upload) -> None:
    """Forget an unfinished upload; one that is gone is fine."""
    try:
        wire.send(Call("DELETE", upload.key, query={"uploadId": upload.id}))
    except NotFound:
        return


def begin(wire: Wire, key: str, headers: Mapping[str, str]) -> Upload:
    """Begin an upload in parts."""
    headers = {**headers, "x-amz-checksum-algorithm": "SHA256"}
    call = Call("POST", key, query={"uploads": ""}, headers=headers)
    upload_id = text_of(wire.ask(call, root="InitiateMultipartUploadResult"), "UploadId")
    if not upload_id:
        raise Corrupt(f"{wire.what(call)}: the server gave no upload id; is this an S3 server?")
    return Upload(key, upload_id)


def complete(wire: Wire, upload: Upload, parts: Iterable[Part], tags: Mapping[int, str]) -> None:
    """Make an upload visible, from its parts and their tags by number."""
    root = ET.Element("CompleteMultipartUpload")
    for part in parts:
        row = ET.SubElement(root, "Part")
        ET.SubElement(row, "PartNumber").text = str(part.number)
        ET.SubElement(row, "ETag").text = f'"{tags[part.number]}"'
        ET.SubElement(row, "ChecksumSHA256").text = base64_of(part.sha256)
    call = Call(
        "POST",
        upload.key,
        query={"uploadId": upload.id},
        headers={"content-type": "application/xml"},
        body=Body.of(ET.tostring(root)),
    )
    wire.ask(call, root="CompleteMultipartUploadResult")


class Sender:
    """The upload of one measured, open file to one full key."""

    def __init__(self, wire: Wire, key: str, descriptor: int, facts: Facts) -> None:
        self._wire = wire
        self._key = key
        self._descriptor = descriptor
        self._facts = facts

    def send(self, *, parallel: int, tell: OnBytes) -> None:
        """Send what is missing and complete it.

        Raises `Corrupt` when the file changed meanwhile, `Conflict` when others keep interfering.
        """
        for beginning in range(_BEGINNINGS):
            upload, there = (None, {}) if beginning else self._unfinished()
            told = 0

            def tell_counted(count: int) -> None:
                nonlocal told
                told += count
                tell(count)

            try:
                self._send_to(upload or self._begin(), there, parallel=parallel, tell=tell_counted)
            except NotFound:
                # Completed by a try whose answer was lost or by a twin, or aborted by someone.
                if not self._is_shown():
                    tell(-told)
                    continue
                return
            if self._is_shown():
                return
            tell(-told)
        raise Conflict(f"s3://{self._wire.bucket}/{self._key}: others write there all the time")

    def _is_shown(self) -> bool:
        try:
            reply = self._wire.send(Call("HEAD", self._key))
        except NotFound:
            return False
        return (reply.size, reply.sha256) == (self._facts.size, self._facts.sha256)

    def _unfinished(self) -> tuple[Upload | None, dict[int, str]]:
        """An upload of this very file that can go on, and the tags of its parts."""
        try:
            found = [u for u in listing.uploads(self._wire, self._key) if u.key == self._key]
            for upload in reversed(found):
                there = listing.parts(self._wire, upload)
                if there and self._fits(there):
                    return upload, {number: tag for number, (_size, tag) in there.items()}
        except (NotFound, Unsupported, Refused, Corrupt):
            # A server that cannot list them is sent the whole file.
            return None, {}
        return None, {}

    def _begin(self) -> Upload:
        headers = {
            "content-type": "application/octet-stream",
            "x-amz-meta-sha256": self._facts.sha256,
        }
        return begin(self._wire, self._key, headers)

    def _fits(self, there: dict[int, tuple[int, str]]) -> bool:
        ours = {part.number: part for part in self._facts.parts}
        return all(
            number in ours
            and ours[number].size == size
            and md5_of(self._descriptor, ours[number]) == tag
            for number, (size, tag) in there.items()
        )

    def _send_to(
        self, upload: Upload, there: dict[int, str], *, parallel: int, tell: OnBytes
    ) -> None:
        tags = dict(there)

        def send_part(part: Part) -> tuple[Part, str]:
            if part.number in there:
                return part, there[part.number]
            query = {"partNumber": str(part.number), "uploadId": upload.id}
            body = body_of(self._descriptor, part)
            reply = self._wire.send(Call("PUT", self._key, query=query, body=body))
            return part, reply.etag

        for part, tag in in_order(send_part, self._facts.parts, parallel=parallel):
            tags[part.number] = tag
            tell(part.size)
        if stamp_of(self._descriptor) != self._facts.stamp:
            abort(self._wire, upload)
            raise Corrupt(f"the file for {self._key} changed while it was stored; store it again")
        complete(self._wire, upload, self._facts.parts, tags)
