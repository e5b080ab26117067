"""Canonical JSON and SHA-256: the one way anything in Kubebooth is identified."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import StringConstraints

Digest = Annotated[str, StringConstraints(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
"""`sha256:` and 64 lower-case hex digits."""

DIGEST_PATTERN = re.compile(r"^sha256:[0-9a-f]{64}\Z")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no blanks and no NaN: equal values give equal bytes.

    Raises `ValueError` for NaN or infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes as a `Digest`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value as a `Digest`."""
    return digest_bytes(canonical_json(value))


def short(digest: str, length: int = 12) -> str:
    """The first hex digits of a digest, for folder and child names."""
    return digest.removeprefix("sha256:")[:length]
