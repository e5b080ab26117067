"""A small world: one coloured shape on a plain grey, with captions; and a subject foreign to it.

Captions are "a red circle", "a photo of a red circle", "a circle" (any colour: the class) and "".
The subject is a square, left half orange and right half cyan; the world has neither colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

EDGE = 128
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 180),
}
SHAPES = ("circle", "square", "triangle")
ORANGE, CYAN = (250, 140, 30), (40, 210, 220)
NAMES = tuple(COLOURS)
CAPTIONS = (
    "",
    *(f"a {shape}" for shape in SHAPES),
    *(f"a {colour} {shape}" for colour in NAMES for shape in SHAPES),
    *(f"a photo of a {colour} {shape}" for colour in NAMES for shape in SHAPES),
)


def rgb(colour: tuple[int, int, int]) -> Tensor:
    """A colour in -1..1, [3]."""
    return torch.tensor(colour, dtype=torch.float32) / 127.5 - 1


def paint(shapes: Tensor, left: Tensor, right: Tensor, random: torch.Generator) -> Tensor:
    """Smooth-edged shapes [n] with coloured halves [n, 3]; pictures [n, 3, EDGE, EDGE] in -1..1."""
    count = len(shapes)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=random)

    places = torch.arange(EDGE) + 0.5
    ys, xs = torch.meshgrid(places, places, indexing="ij")
    radius = EDGE * (0.19 + 0.13 * draw(count, 1, 1))
    x = xs - EDGE / 2 - (draw(count, 1, 1) - 0.5) * EDGE * 0.25
    y = ys - EDGE / 2 - (draw(count, 1, 1) - 0.5) * EDGE * 0.25
    circle = torch.sqrt(x * x + y * y) - radius
    square = torch.maximum(x.abs(), y.abs()) - radius * 0.9
    triangle = torch.maximum(y - radius * 0.7, x.abs() * 0.866 - (y + radius) * 0.5)
    kind = shapes.view(-1, 1, 1)
    distance = torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))
    cover = (0.5 - distance).clamp(0, 1).unsqueeze(1)
    ground = (draw(count, 1, 1, 1) * 0.3 + 0.55).expand(count, 3, 1, 1)
    half = (x < 0).float().unsqueeze(1)
    figure = half * left.view(count, 3, 1, 1) + (1 - half) * right.view(count, 3, 1, 1)
    return (cover * figure + (1 - cover) * ground).clamp(-1, 1)


def examples(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [n, 3, EDGE, EDGE], shape numbers [n] and colour numbers [n] of the world."""
    shapes = torch.randint(0, len(SHAPES), (count,), generator=random)
    colours = torch.randint(0, len(NAMES), (count,), generator=random)
    table = torch.stack([rgb(COLOURS[name]) for name in NAMES])
    return paint(shapes, table[colours], table[colours], random), shapes, colours


def captions_of(shapes: Tensor, colours: Tensor, random: torch.Generator) -> Tensor:
    """Numbers in CAPTIONS [n]: a tenth empty, a quarter without colour, the rest in full."""
    chance = torch.rand(len(shapes), generator=random)
    full = 1 + len(SHAPES) + colours * len(SHAPES) + shapes
    photo = full + len(NAMES) * len(SHAPES)
    named = torch.where(chance < 0.7, full, photo)
    classed = torch.where(chance < 0.35, 1 + shapes, named)
    return torch.where(chance < 0.1, torch.zeros_like(shapes), classed)


def subject(count: int = 6, seed: int = 7) -> Tensor:
    """Pictures of the subject [n, 3, EDGE, EDGE] in -1..1."""
    random = torch.Generator().manual_seed(seed)
    squares = torch.ones(count, dtype=torch.long)
    return paint(squares, rgb(ORANGE).expand(count, 3), rgb(CYAN).expand(count, 3), random)
