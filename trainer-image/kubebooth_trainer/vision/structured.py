"""JSON out of what a model says, believed only when it fits its schema.

Servers may ignore a wanted format in silence, so this is done in any case. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from kubebooth_trainer.errors import ConfigurationError

MAX_DEPTH = 32
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)


class NotFitting(Exception):
    """The answer is no JSON or not of the schema; the message says what to mend."""


def check_schema(schema: Mapping[str, Any], *, where: str) -> None:
    """Raise `ConfigurationError` for a schema that is none, or that reaches outside of itself."""
    try:
        Draft202012Validator.check_schema(dict(schema))
    except (SchemaError, RecursionError) as error:
        told = getattr(error, "message", "it is nested too deeply")
        raise ConfigurationError(f"{where}: no JSON Schema ({told[:200]})") from error
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise ConfigurationError(
                f"{where}: $ref {reference[:100]!r} leaves the schema; copy what it names into"
                " $defs"
            )


def parse(text: str, schema: Mapping[str, Any]) -> Any:
    """The JSON value in an answer. Raises `NotFitting`."""
    value = _json_in(text)
    errors = sorted(
        Draft202012Validator(dict(schema)).iter_errors(value), key=lambda e: list(map(str, e.path))
    )
    if errors:
        first = errors[0]
        path = ".".join(str(part) for part in first.absolute_path) or "the value"
        raise NotFitting(f"{path}: {first.message[:200]}")
    return value


def _json_in(text: str) -> Any:
    fenced = _FENCE.search(text)
    for candidate in (text, fenced[1] if fenced else "", _braced(text)):
        if not candidate.strip():
            continue
        try:
            value = json.loads(candidate, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            continue
        if _depth(value) <= MAX_DEPTH:
            return value
    raise NotFitting("the answer is no JSON")


def _braced(text: str) -> str:
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    end = max(text.rfind("}"), text.rfind("]"))
    return text[min(starts) : end + 1] if starts and end > min(starts) else ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any, level: int = 0) -> int:
    if level > MAX_DEPTH:
        return level
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_depth(one, level + 1) for one in inside), default=level)


def _references(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        own = [str(value["$ref"])] if isinstance(value.get("$ref"), str) else []
        return own + [ref for one in value.values() for ref in _references(one)]
    if isinstance(value, list):
        return [ref for one in value for ref in _references(one)]
    return []
