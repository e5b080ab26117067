"""From a pydantic model to a structural OpenAPI schema; it must not know any kind."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from kubebooth_api.door import Door, Rule

Schema = dict[str, Any]

KEPT = (
    "type",
    "format",
    "description",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
    "multipleOf",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
"""Keywords of pydantic's JSON schema that mean the same to the API server."""

DATE_TIME_LENGTH = 40
"""Longest RFC 3339 time in characters; the API server counts it for the cost of rules."""


class _WithRules(GenerateJsonSchema):
    """JSON schema in which every class carries its own CEL rules."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        made = super().model_schema(schema)
        made.pop("title", None)
        rules: tuple[Rule, ...] = getattr(schema["cls"], "rules", ())
        if rules:
            made["x-kubernetes-validations"] = [validation(rule) for rule in rules]
        return made

    def sort(self, value: Schema, parent_key: str | None = None) -> Schema:
        """Keep fields in the order of the source, as people read them."""
        return value


def validation(rule: Rule) -> dict[str, str]:
    """One entry of `x-kubernetes-validations`."""
    made = {"rule": rule.rule, "message": rule.message}
    if rule.path is not None:
        made["fieldPath"] = rule.path
    return made


def json_schema(model: type[Door]) -> Schema:
    """Pydantic's JSON schema with rules attached; references are still there."""
    return model.model_json_schema(by_alias=True, schema_generator=_WithRules)


def structural(model: type[Door], *, defaults: bool) -> Schema:
    """The structural schema of a model: no references, no unions, no titles.

    Optional fields are left out of `required` rather than made nullable. `defaults=False` leaves
    all defaults out: what a controller writes to a status should come back as it was written.
    """
    whole = json_schema(model)
    return _convert(whole, whole.get("$defs", {}), defaults=defaults)


def _convert(source: Schema, definitions: Schema, *, defaults: bool) -> Schema:
    resolved = _resolve(source, definitions)
    made: Schema = {key: resolved[key] for key in KEPT if key in resolved}
    _describe(made)
    _type_enum(made, resolved)
    _bound_number(made, resolved)
    if made.get("format") == "date-time":
        made.setdefault("maxLength", DATE_TIME_LENGTH)
    if "items" in resolved:
        made["items"] = _convert(resolved["items"], definitions, defaults=defaults)
    if isinstance(resolved.get("additionalProperties"), dict):
        made["additionalProperties"] = _convert(
            resolved["additionalProperties"], definitions, defaults=defaults
        )
    if "properties" in resolved:
        made["properties"] = {
            name: _convert(child, definitions, defaults=defaults)
            for name, child in resolved["properties"].items()
        }
    if defaults and resolved.get("default") is not None:
        made["default"] = trimmed(resolved["default"], made)
    return made


def _resolve(source: Schema, definitions: Schema) -> Schema:
    """Follow `$ref` and fold `X or null` into X; what stands beside a reference wins."""
    resolved = dict(source)
    for keyword in ("anyOf", "allOf"):
        choices = [choice for choice in resolved.pop(keyword, []) if choice.get("type") != "null"]
        if len(choices) > 1:
            raise ValueError(f"a union of {len(choices)} shapes is not structural: {source}")
        if choices:
            resolved = {**choices[0], **resolved}
    if "$ref" in resolved:
        name = resolved.pop("$ref").rpartition("/")[2]
        return _resolve({**definitions[name], **resolved}, definitions)
    return resolved


def _describe(made: Schema) -> None:
    if "description" in made:
        made["description"] = " ".join(made["description"].split())


def _type_enum(made: Schema, resolved: Schema) -> None:
    if "const" in resolved:
        made["enum"] = [resolved["const"]]
    if "enum" in made:
        made["type"] = "string"


def _bound_number(made: Schema, resolved: Schema) -> None:
    """Draft-4 exclusive bounds, and the format that tells clients how wide the number is."""
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive in resolved:
            made[bound] = resolved[exclusive]
            made[exclusive] = True
    if made.get("type") == "integer":
        made["format"] = "int32" if made.get("maximum", 2**63) < 2**31 else "int64"
    if made.get("type") == "number":
        made["format"] = "double"


def trimmed(default: Any, schema: Schema) -> Any:
    """A default without what the defaults below it already say: `{}` where they say all.

    The API server runs an object's rules on its default before it fills in the defaults below, so
    an object with rules keeps its default whole.
    """
    if isinstance(default, list):
        return [trimmed(item, schema["items"]) for item in default]
    if "x-kubernetes-validations" in schema:
        return _without_nulls(default)
    if not isinstance(default, dict) or "properties" not in schema:
        return default
    return {
        name: trimmed(value, child)
        for name, value in default.items()
        if value is not None
        for child in [schema["properties"][name]]
        if not ("default" in child and trimmed(value, child) == child["default"])
    }


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_nulls(child) for name, child in value.items() if child is not None}
