"""What one tensor of a single file is in the Diffusers layout, and the table such links fill.

A table holds every tensor that a network of given sizes has, under both names and with its shape;
so an unknown, a missing and a misshapen tensor all show before a byte is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]
How = Literal["Same", "Join", "Swap", "Transpose", "Conv"]
"""Diffusers → single file: nothing; rows joined in order; halves of the rows swapped; dimensions
of a matrix exchanged; a matrix as a 1x1 convolution."""


@dataclass(frozen=True)
class Part:
    """A tensor of the Diffusers layout, without the component's folder."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Link:
    """One tensor of the single file and what it is made of."""

    single: str
    """Name in the single file, without the component's prefix."""
    shape: Shape
    parts: tuple[Part, ...]
    how: How = "Same"


class Table:
    """Links of one network, filled module by module; `d` is a module path of the Diffusers layout
    and `s` that of the single file."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    def same(self, d: str, s: str, *shape: int) -> None:
        """One tensor with full names."""
        self.links.append(Link(s, shape, (Part(d, shape),)))

    def linear(self, d: str, s: str, *, rows: int, columns: int, bias: bool = True) -> None:
        """Weight [rows, columns] and bias [rows]."""
        self.same(f"{d}.weight", f"{s}.weight", rows, columns)
        if bias:
            self.same(f"{d}.bias", f"{s}.bias", rows)

    def conv(self, d: str, s: str, *, rows: int, columns: int, edge: int = 3) -> None:
        """Weight [rows, columns, edge, edge] and bias [rows]."""
        self.same(f"{d}.weight", f"{s}.weight", rows, columns, edge, edge)
        self.same(f"{d}.bias", f"{s}.bias", rows)

    def norm(self, d: str, s: str, *, width: int) -> None:
        """Weight and bias [width]."""
        self.same(f"{d}.weight", f"{s}.weight", width)
        self.same(f"{d}.bias", f"{s}.bias", width)

    def as_conv(self, d: str, s: str, *, rows: int, columns: int) -> None:
        """A linear layer that the single file has as a 1x1 convolution."""
        plain, conv = (rows, columns), (rows, columns, 1, 1)
        self.links.append(Link(f"{s}.weight", conv, (Part(f"{d}.weight", plain),), "Conv"))
        self.same(f"{d}.bias", f"{s}.bias", rows)

    def join(self, names: list[tuple[str, int]], s: str, *, columns: int | None) -> None:
        """Tensors [rows, columns], or [rows], given as (name, rows), that the single file has as
        one."""
        tail = () if columns is None else (columns,)
        parts = tuple(Part(name, (rows, *tail)) for name, rows in names)
        self.links.append(Link(s, (sum(rows for _, rows in names), *tail), parts, "Join"))

    def swap(self, d: str, s: str, *, rows: int, columns: int) -> None:
        """A linear layer whose halves of rows stand the other way round."""
        for leaf, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            self.links.append(Link(f"{s}.{leaf}", shape, (Part(f"{d}.{leaf}", shape),), "Swap"))

    def transpose(self, d: str, s: str, *, rows: int, columns: int) -> None:
        """A matrix [rows, columns] that the single file has as [columns, rows]."""
        part = Part(d, (rows, columns))
        self.links.append(Link(s, (columns, rows), (part,), "Transpose"))
