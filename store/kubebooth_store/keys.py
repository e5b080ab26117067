"""Keys, prefixes and addresses of stores: what is well-formed and what would escape."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from kubebooth_store.errors import Refused
from kubebooth_store.verbs import Entry

MAX_KEY_BYTES = 1024
OWN = ".kubebooth"
"""First segment of what a folder store keeps for itself; never a key."""


def check_key(key: str) -> str:
    """The key itself, or `Refused` with what is wrong with it.

    A key is 1 to 1024 bytes of UTF-8, segments joined by `/`, without empty, `.` or `..`
    segments, control characters or backslashes, so that it means the same on S3 and on disk.
    """
    if not key:
        raise Refused("a key must not be empty")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise Refused(f"key {key!a} is not valid Unicode; rename the file") from error
    if size > MAX_KEY_BYTES:
        raise Refused(f"key {key[:60]!r}… has {size} bytes; shorten it to {MAX_KEY_BYTES}")
    if any(ord(char) < 32 or ord(char) == 127 or char == "\\" for char in key):
        raise Refused(f"key {key!r} holds a backslash or control character; rename the file")
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise Refused(f"key {key!r} has an empty, '.' or '..' segment; write it without")
    if key.split("/", 1)[0] == OWN:
        raise Refused(f"key {key!r} begins with {OWN!r}, which the store keeps for itself")
    return key


def check_prefix(prefix: str) -> str:
    """A prefix as the name of a folder: '' for the root, else `a/b` without a final slash."""
    trimmed = prefix.rstrip("/")
    return check_key(trimmed) if trimmed else ""


def check_span(entry: Entry, start: int, length: int) -> None:
    """Raise `Refused` for bytes outside of a file."""
    if start < 0 or length < 0 or start + length > entry.size:
        raise Refused(f"range {start}+{length} lies outside of {entry.key!r}")


def join(prefix: str, name: str) -> str:
    """Key of a name below a prefix."""
    return f"{prefix}/{name}" if prefix else name


def key_below(root: str, uri: str) -> str:
    """The key of an address below a root address; `Refused` for a foreign store."""
    inside = uri.startswith(f"{root}/")
    if not inside:
        raise Refused(f"{uri!r} is not in the store {root!r}; open the store that holds it")
    return check_prefix(uri[len(root) + 1 :])


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`."""
    rest = uri.removeprefix("s3://")
    bucket, _, prefix = rest.partition("/")
    if not bucket or any(char in bucket for char in "?#@:"):
        raise Refused(f"store {uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, check_prefix(prefix)


def split_file(uri: str) -> str:
    """Absolute path of `file:///folder`."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.startswith("/"):
        raise Refused(f"store {uri!r} is no absolute folder; write file:///folder")
    return path
