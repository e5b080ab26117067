"""What every model at a door shares: camelCase outside, snake_case inside, strict, frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """One CEL rule of a structural schema; `message` names the field and the cure."""

    rule: str
    message: str
    path: str | None = None
    """Relative field path reported with the refusal, such as `.training.resolution`."""


class Door(BaseModel):
    """A model that crosses a door. Subclasses document each field; the text becomes the CRD's."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        strict=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> Self:
        """Validate a JSON-shaped mapping. Raises `pydantic.ValidationError`."""
        return cls.model_validate_json(json.dumps(mapping))

    def dump(self) -> dict[str, Any]:
        """JSON-shaped mapping in camelCase without unset optionals."""
        dumped: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return dumped


def changed_fields(model: Door, path: str = "") -> Iterator[tuple[str, Any]]:
    """Fields, by camelCase path, whose value is not the default: `("training.method", "LoRA")`.

    List items are walked as `concepts[].token`; a required field always counts as changed, and so
    does an optional object that is there at all.
    """
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        here = f"{path}.{info.alias or name}".removeprefix(".")
        if isinstance(value, Door):
            if info.default is None:
                yield here, value
            if value != info.default:
                yield from changed_fields(value, here)
        elif isinstance(value, tuple) and value and isinstance(value[0], Door):
            if value != info.default:
                for item in value:
                    yield from changed_fields(item, f"{here}[]")
        elif info.is_required() or value != info.default:
            yield here, value


def explain(error: ValidationError, root: str = "spec") -> str:
    """One sentence per fault, newest name first: `spec.training.resolution: Input should be ...`.

    At most five faults are told; the rest are counted.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    faults = [
        f"{_path(root, fault['loc'])}: {fault['msg']}"
        for fault in found
        if not _follows_from_another(fault["type"], fault["loc"], [f["loc"] for f in found])
    ]
    told = "; ".join(faults[:5])
    return told if len(faults) <= 5 else f"{told}; and {len(faults) - 5} more"


def _path(root: str, location: tuple[int | str, ...]) -> str:
    """`spec.concepts[0].token`, as the API server writes it."""
    return root + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location)


def _follows_from_another(
    kind: str, location: tuple[int | str, ...], all_locations: list[tuple[int | str, ...]]
) -> bool:
    """Whether a list is only called too short because its entries were refused."""
    depth = len(location)
    return kind == "too_short" and any(
        len(other) > depth and other[:depth] == location for other in all_locations
    )
