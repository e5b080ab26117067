"""Reads sizes of networks, from configs and from names with shapes; every number is hostile.

A network that claims more than these limits is refused before a table of it is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kubebooth_trainer.errors import DataError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by name, without the component's prefix."""
MOST_LAYERS = 128
MOST_BLOCKS = 8
MOST_WIDTH = 1 << 20


class Config:
    """A JSON config; refuses what no network has. `file` is named in errors."""

    def __init__(self, values: Mapping[str, Any], *, file: str) -> None:
        self.values = values
        self.file = file

    def count(self, name: str, default: int | None = None, *, most: int = MOST_WIDTH) -> int:
        """A whole number from 1 to `most`."""
        value = self.values.get(name)
        return self._number(name, default if value is None else value, most)

    def optional(self, name: str) -> int | None:
        """A whole number, or None where it is absent or null."""
        return None if self.values.get(name) is None else self.count(name)

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of 1 to 8 whole numbers."""
        return tuple(self._number(name, value, MOST_WIDTH) for value in self._list(name))

    def words(self, name: str) -> tuple[str, ...]:
        """A list of 1 to 8 strings."""
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name)
        return tuple(values)

    def each(self, name: str, *, blocks: int, default: int, most: int) -> tuple[int, ...]:
        """A whole number for each block, given as a list or as one for all."""
        value = self.values.get(name)
        if not isinstance(value, list):
            return (self.count(name, default, most=most),) * blocks
        if len(value) != blocks:
            raise self.wrong(name)
        return tuple(self._number(name, item, most) for item in value)

    def truth(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name)
        return value

    def wrong(self, name: str) -> DataError:
        """The error that names the field."""
        return DataError(
            f"{self.file}: {name} {str(self.values.get(name))[:60]!r} is not what this network"
            " can have; take the config.json that belongs to the weights",
            reason="BadConfig",
        )

    def _list(self, name: str) -> list[Any]:
        value = self.values.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_BLOCKS:
            raise self.wrong(name)
        return value

    def _number(self, name: str, value: object, most: int) -> int:
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(name)
        return value


class Found:
    """Names with shapes of one network; refuses one that lacks what its sizes are read from."""

    def __init__(self, shapes: Shapes, *, what: str) -> None:
        self.shapes = shapes
        self.what = what

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor that must be there."""
        shape = self.shapes.get(name)
        if shape is None:
            raise DataError(
                f"{self.what}: tensor {name} is missing, so its sizes cannot be read; the file is"
                " incomplete, take a whole one",
                reason="MissingTensor",
            )
        if len(shape) != dimensions or not all(1 <= edge <= MOST_WIDTH for edge in shape):
            raise DataError(
                f"{self.what}: tensor {name} has shape {list(shape)}, which no such network has",
                reason="WrongShape",
            )
        return shape

    def number(self, pattern: str, *, most: int) -> int:
        """How many there are: one more than the greatest number that `pattern` captures."""
        compiled = re.compile(pattern)
        found = [int(m[1][:6]) for name in self.shapes if (m := compiled.match(name))]
        if found and max(found) >= most:
            raise DataError(
                f"{self.what}: names speak of more than {most} layers; no such network is known",
                reason="UnknownTensor",
            )
        return max(found) + 1 if found else 0
