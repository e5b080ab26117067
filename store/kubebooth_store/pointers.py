"""Small JSON files that are moved by compare-and-swap, such as `current.json`."""

from __future__ import annotations

import json
from typing import Any

from kubebooth_api.digests import canonical_json

from kubebooth_store.errors import Corrupt, NotFound
from kubebooth_store.verbs import Entry, Store

_MAX_BYTES = 64 * 1024


def read_pointer(store: Store, key: str) -> tuple[dict[str, Any], str] | None:
    """Value and version tag of a pointer, or None. Raises `Corrupt` when it is no JSON object."""
    try:
        data, entry = store.read_entry(key, max_bytes=_MAX_BYTES)
    except NotFound:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{store.uri_of(key)} is no JSON: {error}; remove or rewrite it") from error
    if not isinstance(value, dict):
        raise Corrupt(f"{store.uri_of(key)} is no JSON object; remove or rewrite it")
    return value, entry.etag


def move_pointer(store: Store, key: str, value: dict[str, Any], *, expect: str | None) -> Entry:
    """Write a pointer if it is still the version expected; None expects that there is none.

    Raises `Conflict` when someone else moved it first.
    """
    return store.write(
        key,
        canonical_json(value),
        if_absent=expect is None,
        if_match=expect,
        content_type="application/json",
    )
