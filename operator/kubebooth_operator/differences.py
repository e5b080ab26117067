"""Pure comparison of what is wanted with what is there, so that nothing is written in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMED = "name"


def lacks(wanted: Any, there: Any) -> bool:
    """Whether something of `wanted` is missing or different in `there`.

    What the server or others added is no difference. Lists of named items are compared by name,
    other lists item by item.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return bool(wanted) or there is not None
        return any(lacks(value, there.get(key)) for key, value in wanted.items())
    if isinstance(wanted, (list, tuple)):
        return _list_lacks(wanted, there)
    return bool(wanted != there)


def _list_lacks(wanted: Sequence[Any], there: Any) -> bool:
    if not isinstance(there, (list, tuple)):
        return bool(wanted) or there is not None
    if all(isinstance(item, Mapping) and _NAMED in item for item in (*wanted, *there)):
        by_name = {item[_NAMED]: item for item in there}
        return any(lacks(item, by_name.get(item[_NAMED])) for item in wanted)
    if len(wanted) != len(there):
        return True
    return any(lacks(mine, theirs) for mine, theirs in zip(wanted, there, strict=True))


def merge_patch(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """JSON merge patch (RFC 7396) that makes `there` equal `wanted`; empty when they are equal.

    A null in `wanted` is the same as an absent field.
    """
    patch: dict[str, Any] = {key: None for key in there if wanted.get(key) is None}
    for key, value in wanted.items():
        if value is None:
            continue
        old = there.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = merge_patch(value, old)
            if inner:
                patch[key] = inner
            continue
        if value != old:
            patch[key] = without_nulls(value)
    return patch


def without_nulls(value: Any) -> Any:
    """The same JSON without fields that are null, as an API server keeps it."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value
