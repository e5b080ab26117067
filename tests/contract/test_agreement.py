"""Whatever the API server lets in, the models can read: field by field, with hostile values."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from kubebooth_api.crd.definition import root_schema
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_api.v1alpha1 import API_VERSION, GROUP, VERSION
from kubebooth_cluster.api import ApiError
from kubebooth_cluster.testing import RealApi
from pydantic import ValidationError

Schema = dict[str, Any]
Path = tuple[str, ...]

STRINGS = (
    "a",
    "a/b",
    "0" * 64,
    f"sha256:{'0' * 64}",
    "0" * 40,
    "https://a.example.com",
    "a/b:c",
    "1Gi",
    "",
)
HOSTILE: dict[str, tuple[Any, ...]] = {
    "string": (
        *STRINGS,
        " ",
        "a\n",
        "a\nb",
        "a\u2028b",
        "\u00e4\u0130\U0001f600",
        "a\u0000b",
        "../a",
        "/a",
        "a\\b",
        "A",
        "a.b",
        "1e3",
        "\u0661",
        "x" * 300,
        1,
        True,
        [],
        {},
    ),
    "integer": (0, 1, -1, 64, 1.0, 1.5, 2**31, 2**53, 2**63 - 1, 1e2, "1", True, None),
    "number": (0, 1, -1, 0.5, 1e-9, 1e300, 2**63, "0.5", True),
    "boolean": (True, False, 0, 1, "true", "yes", None),
    "array": ([], [[]], [None], {}, "a"),
    "object": ({}, [], "a", {"a": "b"}, {"": ""}),
}
PER_KIND = 150


def leaves(schema: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    """Every node of a schema with its path; `[]` stands for a list entry, `{}` for a map value."""
    if path:
        yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from leaves(child, (*path, name))
    if "items" in schema:
        yield from leaves(schema["items"], (*path, "[]"))
    if "additionalProperties" in schema:
        yield from leaves(schema["additionalProperties"], (*path, "{}"))


def smallest(schema: Schema) -> Any:
    """A valid value with as little in it as possible."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        names = schema.get("required", [])
        names = [*names, *choices(schema)[:1]]
        return {name: smallest(schema["properties"][name]) for name in names}
    if schema["type"] == "array":
        return [smallest(schema["items"])] * schema.get("minItems", 0)
    if "commit" in schema.get("description", "").lower():
        return "0" * 40
    if schema["type"] == "string":
        fits = re.compile(schema.get("pattern", ""))
        least = schema.get("minLength", 0)
        return next(s for s in STRINGS if len(s) >= least and fits.search(s))
    return schema.get("minimum", 0) + (1 if schema.get("exclusiveMinimum") else 0)


def holding(schema: Schema, path: Path, value: Any) -> Any:
    """The smallest value of a schema that has `value` at `path`."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if first == "[]":
        return [holding(schema["items"], rest, value)]
    if first == "{}":
        return {"key": holding(schema["additionalProperties"], rest, value)}
    below = holding(schema["properties"][first], rest, value)
    if first in choices(schema):
        required = schema.get("required", [])
        return {name: smallest(schema["properties"][name]) for name in required} | {first: below}
    return {**smallest(schema), first: below}


def choices(schema: Schema) -> list[str]:
    """Fields of which a rule wants exactly one."""
    rules = schema.get("x-kubernetes-validations", [])
    if not any("set exactly one of" in rule["message"] for rule in rules):
        return []
    required = schema.get("required", [])
    return [n for n, s in schema["properties"].items() if n not in required and "default" not in s]


def cases(kind: Kind) -> list[tuple[Path, Any, dict[str, Any]]]:
    """Some of all pairs of a field and a hostile value, the same ones every time."""
    schema = root_schema(kind)["properties"]["spec"]
    pairs = [
        (p, v, holding(schema, p, v)) for p, node in leaves(schema) for v in HOSTILE[node["type"]]
    ]
    return random.Random(kind.kind).sample(pairs, min(PER_KIND, len(pairs)))


def let_in(server: RealApi, kind: Kind, spec: dict[str, Any]) -> dict[str, Any] | None:
    """The spec as the API server would store it, or None when it refuses."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/default/{kind.plural}?dryRun=All"
    metadata = {"name": "a", "namespace": "default"}
    body = {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": metadata, "spec": spec}
    try:
        stored: dict[str, Any] = server.api.post(path, body)["spec"]
    except ApiError as error:
        if error.code not in {400, 422}:
            raise
        return None
    return stored


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_models_read_whatever_the_server_lets_in(server: RealApi, kind: Kind) -> None:
    admitted, refused, unread = 0, 0, []
    for path, value, spec in cases(kind):
        stored = let_in(server, kind, spec)
        if stored is None:
            refused += 1
            continue
        admitted += 1
        try:
            assert kind.spec.parse(stored).dump() == stored
        except (ValidationError, AssertionError) as error:
            unread.append((".".join(path), value, str(error)[:200]))
    assert unread == []
    assert admitted > 20
    assert refused > 20
