"""Which pictures stand in which batch: a pure function of the batch's number.

With one shape of pictures, samples are numbered through all passes and batches are cut from them,
so that batch size and accumulation change no sample. With several shapes a batch holds one shape
only: each pass cuts every shape's shuffled pictures into as few batches of near equal size as
possible and shuffles those, so that every picture is seen just once a pass and none is left over.
It must not know tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kubebooth_trainer.train import draws


@dataclass(frozen=True)
class Seat:
    """One instance sample of a batch, and which class picture stands beside it."""

    number: int
    """What its draws are keyed by, unique within a stage."""
    place: int
    """Place of the picture in the list of all."""
    company: int
    """How many samples of its shape come before it in the stage."""


class Seating:
    """The batches of one stage over pictures of given shapes, in the order of their places."""

    def __init__(
        self, shapes: Sequence[Hashable], *, batch_size: int, seed: int, purpose: str
    ) -> None:
        self._size, self._seed, self._purpose = batch_size, seed, purpose
        self._groups: dict[Hashable, list[int]] = {}
        for place, shape in enumerate(shapes):
            self._groups.setdefault(shape, []).append(place)
        self._order = draws.Order(len(shapes), seed=seed, purpose=purpose)
        self._passes: dict[int, list[list[tuple[int, int]]]] = {}

    @property
    def batches_in_a_pass(self) -> int | None:
        """Batches that see every picture once, or None with one shape, where passes overlap."""
        if len(self._groups) == 1:
            return None
        return sum(-(-len(group) // self._size) for group in self._groups.values())

    def batch(self, number: int) -> list[Seat]:
        """The samples of the batch with a number, from 0; all of one shape."""
        first = number * self._size
        many = self.batches_in_a_pass
        if many is None:
            return [
                Seat(place, self._order.at(place), place)
                for place in range(first, first + self._size)
            ]
        turn, position = divmod(number, many)
        seats = self._pass(turn)[position]
        return [Seat(first + i, place, before) for i, (place, before) in enumerate(seats)]

    def _pass(self, turn: int) -> list[list[tuple[int, int]]]:
        """Batches of a pass as (place, samples of the shape before it); the newest two are kept."""
        if turn not in self._passes:
            self._passes = {t: p for t, p in self._passes.items() if t == turn - 1}
            self._passes[turn] = self._cut(turn)
        return self._passes[turn]

    def _cut(self, turn: int) -> list[list[tuple[int, int]]]:
        cut: list[list[tuple[int, int]]] = []
        for shape, group in sorted(self._groups.items(), key=lambda item: str(item[0])):
            order = draws.order(len(group), self._seed, self._purpose, str(shape), turn)
            seats = [(group[place], turn * len(group) + nth) for nth, place in enumerate(order)]
            cut += even(seats, size=self._size)
        places = draws.order(len(cut), self._seed, f"{self._purpose} batches", turn)
        return [cut[place] for place in places]


def even(seats: Sequence[tuple[int, int]], *, size: int) -> list[list[tuple[int, int]]]:
    """As few runs as possible of at most `size`, whose lengths differ by one at most."""
    count = -(-len(seats) // size)
    bounds = [len(seats) * nth // count for nth in range(count + 1)]
    return [list(seats[a:b]) for a, b in pairwise(bounds)]


def shared_out(total: int, shares: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """`total` things shared out by weight, largest remainders first, one for each at least."""
    weight = sum(shares.values())
    exact = {key: total * share / weight for key, share in shares.items()}
    given = {key: max(1, int(value)) for key, value in exact.items()}
    rest = sorted(exact, key=lambda key: (int(exact[key]) - exact[key], key))
    for key in rest[: max(0, total - sum(given.values()))]:
        given[key] += 1
    return given
