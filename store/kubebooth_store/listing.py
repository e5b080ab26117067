"""Lists of keys and of unfinished uploads of a bucket, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from kubebooth_api import layout

from kubebooth_store.errors import Corrupt, Refused
from kubebooth_store.replies import plain, rows_of, text_of
from kubebooth_store.verbs import Entry
from kubebooth_store.wire import Call, Wire

_INDEXES = {layout.MANIFEST, layout.CURRENT}
_MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was begun and not completed."""

    key: str
    id: str


def is_index(key: str) -> bool:
    """Whether a key makes others visible, so that it must go first."""
    return key.rpartition("/")[2] in _INDEXES


def entries(wire: Wire, prefix: str) -> list[Entry]:
    """Entries whose full keys begin with a prefix, sorted by the bytes of their keys.

    They are sorted here since SeaweedFS lists folder by folder. Raises `Corrupt` when the server
    goes round in circles, `Refused` when there are more than a million.
    """
    found: dict[str, Entry] = {}
    tokens = {""}
    token = ""
    while True:
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        call = Call("GET", query={**query, "continuation-token": token} if token else query)
        page = wire.ask(call, root="ListBucketResult")
        for entry in _page(page):
            if entry.key.startswith(prefix) and not entry.key.endswith("/"):
                found[entry.key] = entry
        if len(found) > _MAX_ENTRIES:
            raise Refused(f"{wire.what(call)}: more than {_MAX_ENTRIES} keys; list a deeper prefix")
        token = text_of(page, "NextContinuationToken")
        if text_of(page, "IsTruncated") != "true" or not token:
            return [found[key] for key in sorted(found, key=str.encode)]
        if token in tokens:
            raise Corrupt(f"{wire.what(call)}: the list goes round in circles; use another server")
        tokens.add(token)


def _page(page: Element) -> Iterator[Entry]:
    encoded = text_of(page, "EncodingType") == "url"
    for row in rows_of(page, "Contents"):
        size = text_of(row, "Size")
        if not size.isdigit():
            raise Corrupt(f"a list has no valid size for {text_of(row, 'Key')!r}")
        etag = text_of(row, "ETag").strip('"')[:256]
        yield Entry(plain(text_of(row, "Key"), encoded=encoded), int(size), etag, None)


def uploads(wire: Wire, prefix: str) -> Iterator[Upload]:
    """Unfinished uploads whose full keys begin with a prefix."""
    markers: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while True:
        query = {"uploads": "", "prefix": prefix, "encoding-type": "url", **markers}
        page = wire.ask(Call("GET", query=query), root="ListMultipartUploadsResult")
        encoded = text_of(page, "EncodingType") == "url"
        for row in rows_of(page, "Upload"):
            upload = Upload(plain(text_of(row, "Key"), encoded=encoded), text_of(row, "UploadId"))
            if upload.id and upload.key.startswith(prefix):
                yield upload
        marker = (text_of(page, "NextKeyMarker"), text_of(page, "NextUploadIdMarker"))
        if text_of(page, "IsTruncated") != "true" or marker in seen or not any(marker):
            return
        seen.add(marker)
        markers = {
            "key-marker": plain(marker[0], encoded=encoded),
            "upload-id-marker": marker[1],
        }


def parts(wire: Wire, upload: Upload) -> dict[int, tuple[int, str]]:
    """Parts an unfinished upload holds: size and tag by number."""
    found: dict[int, tuple[int, str]] = {}
    marker = "0"
    while True:
        query = {"uploadId": upload.id, "part-number-marker": marker}
        page = wire.ask(Call("GET", upload.key, query=query), root="ListPartsResult")
        for row in rows_of(page, "Part"):
            number, size = text_of(row, "PartNumber"), text_of(row, "Size")
            if number.isdigit() and size.isdigit():
                found[int(number)] = (int(size), text_of(row, "ETag").strip('"'))
        following = text_of(page, "NextPartNumberMarker")
        ended = text_of(page, "IsTruncated") != "true"
        if ended or not following.isdigit() or int(following) <= int(marker):
            return found
        marker = following
