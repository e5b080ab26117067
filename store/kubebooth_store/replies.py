"""What S3 replies mean: statuses become errors by status, XML becomes plain values."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from kubebooth_store.errors import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Refused,
    StoreError,
    Unsupported,
)
from kubebooth_store.patience import Transient

_AGAIN = {408, 425, 429}
_DAMAGED = {
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}


@dataclass(frozen=True)
class Reply:
    """Status, lower-case headers and body of a reply; the body in the pieces it came in."""

    status: int
    headers: Mapping[str, str]
    pieces: tuple[bytes, ...]
    oversized: bool = False
    """The body was longer than asked for and is cut."""

    @property
    def data(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)

    @property
    def length(self) -> int:
        """Bytes that arrived."""
        return sum(len(piece) for piece in self.pieces)

    @property
    def etag(self) -> str:
        """Version tag without quotes, at most 256 characters."""
        return self.headers.get("etag", "").removeprefix("W/").strip('"')[:256]

    @property
    def size(self) -> int:
        """Content length in bytes, -1 when it is not told."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isdigit() else -1

    @property
    def sha256(self) -> str | None:
        """The SHA-256 kept beside the content, when it looks like one."""
        text = self.headers.get("x-amz-meta-sha256", "")
        return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None


def judge(reply: Reply, *, what: str, attempt: int) -> Reply:
    """The reply when it is a success; else the error of ours, or `Transient`."""
    if 200 <= reply.status < 300:
        return reply
    code, message = fault_of(reply.data)
    told = f" ({code}: {message})" if code else f" (HTTP {reply.status})"
    if reply.status >= 500 and reply.status not in {501, 505}:
        full = reply.status == 507 or "space" in message.lower()
        raise Transient(f"the server failed{' for want of space' if full else ''}{told}")
    if reply.status in _AGAIN or code in {"RequestTimeout", "SlowDown"}:
        raise Transient(f"the server asks for patience{told}")
    if code in _DAMAGED:
        raise Transient(f"the bytes were damaged on their way{told}", corrupt=True)
    if code in {"ConditionalRequestConflict", "OperationAborted"} and attempt < 4:
        raise Transient(f"another writer is busy there{told}")
    raise _final(reply, code, what, told)


def _final(reply: Reply, code: str, what: str, told: str) -> StoreError:
    region = reply.headers.get("x-amz-bucket-region")
    if code == "RequestTimeTooSkewed":
        return Denied(f"{what}: this machine's clock is wrong{told}; set it by NTP")
    if region and reply.status in {301, 307, 400}:
        return Refused(f"{what}: the bucket is in region {region!r}; set the region to it")
    if code == "NoSuchBucket":
        return NotFound(f"{what}: the bucket does not exist; create it or correct its name")
    if reply.status in {401, 403}:
        return Denied(f"{what}: refused{told}; check the access key, the secret key and its rights")
    if reply.status == 404:
        return NotFound(f"{what}: does not exist{told}")
    if reply.status in {409, 412}:
        return Conflict(f"{what}: someone else wrote first{told}; read it again and decide anew")
    if reply.status in {405, 501}:
        return Unsupported(f"{what}: the server does not know this{told}; probe it, use another")
    return Refused(f"{what}: the server does not accept this{told}")


def fault_of(data: bytes) -> tuple[str, str]:
    """Code and message of an S3 error document, empty when it is none."""
    try:
        root = ET.fromstring(data) if data else None  # noqa: S314 - expat bounds expansion
    except ET.ParseError:
        return "", ""
    if root is None or local_name(root.tag) != "Error":
        return "", ""
    facts = {local_name(child.tag): (child.text or "")[:300] for child in root}
    return facts.get("Code", "")[:100], facts.get("Message", "")


def local_name(tag: str) -> str:
    """An element's name without its namespace."""
    return tag.rpartition("}")[2]


def document(reply: Reply, *, root: str, what: str) -> ET.Element:
    """The XML of a reply; `Corrupt` when it is another document than expected."""
    try:
        if reply.oversized:
            raise ET.ParseError("too long")
        element = ET.fromstring(reply.data)  # noqa: S314 - expat bounds expansion
    except ET.ParseError as error:
        raise Corrupt(
            f"{what}: the reply is no valid XML ({error}); is this an S3 server?"
        ) from error
    if local_name(element.tag) == "Error":
        code, message = fault_of(reply.data)
        raise Transient(f"the server failed ({code}: {message})")
    if local_name(element.tag) != root:
        raise Corrupt(
            f"{what}: the reply is {local_name(element.tag)[:40]!r}, not {root!r}; "
            "is this an S3 server?"
        )
    return element


def text_of(element: ET.Element, name: str, default: str = "") -> str:
    """Text of a direct child, whatever its namespace."""
    for child in element:
        if local_name(child.tag) == name:
            return child.text or default
    return default


def rows_of(element: ET.Element, name: str) -> list[ET.Element]:
    """Direct children of a name, whatever their namespace."""
    return [child for child in element if local_name(child.tag) == name]


def plain(text: str, *, encoded: bool) -> str:
    """A key as it is, undoing `encoding-type=url`."""
    return unquote(text.replace("+", " ")) if encoded else text
