"""Updates of several modules as one, and back, as kohya's files have them of Flux.

Fused: down matrices one below another, up matrices along a diagonal. The way back is exact where
the blocks stand on a diagonal; where they do not, every module gets the whole down matrix, which is
the same update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kubebooth_trainer.convert import views
from kubebooth_trainer.convert.door import DTYPE_BYTES, Segment, Tensor
from kubebooth_trainer.convert.keys.lora import Place
from kubebooth_trainer.convert.lora_layers import Group, Layer
from kubebooth_trainer.errors import DataError


@dataclass(frozen=True)
class Diagonal:
    """A file whose bytes are matrices along a diagonal, zeros elsewhere, made as they are read."""

    blocks: tuple[Tensor | None, ...]
    """Matrices [rows, columns], contiguous and of one dtype; None where only rows of zeros are."""
    rows: tuple[int, ...]
    columns: int
    """Of the whole."""
    name: str = "diagonal"

    @property
    def dtype(self) -> str:
        """Dtype of all blocks."""
        return next(block.dtype for block in self.blocks if block is not None)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return sum(self.rows) * self.columns * DTYPE_BYTES[self.dtype]

    @property
    def descriptor(self) -> int | None:
        """Nothing the kernel could copy from."""
        return None

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        width = self.columns * DTYPE_BYTES[self.dtype]
        first, last = start // width, -(-(start + length) // width)
        data = b"".join(self._rows(first, last))
        skipped = start - first * width
        return data[skipped : skipped + length]

    def _rows(self, first: int, last: int) -> list[bytes]:
        item, made, at, column = DTYPE_BYTES[self.dtype], [], 0, 0
        for block, count in zip(self.blocks, self.rows, strict=True):
            begin, end = max(first, at), min(last, at + count)
            wide = 0 if block is None else block.shape[1]
            if begin < end and block is not None:
                data = views.read(views.rows(block, begin - at, end - at))
                before, after = bytes(column * item), bytes((self.columns - column - wide) * item)
                step = wide * item
                made += [before + data[i : i + step] + after for i in range(0, len(data), step)]
            elif begin < end:
                made.append(bytes((end - begin) * self.columns * item))
            at, column = at + count, column + wide
        return made


def fused(place: Place, layers: Sequence[Layer | None], rows: Sequence[int]) -> Layer:
    """One update of all parts of `place`; `rows` are the rows of each part's weight, None a part
    without update. Raises `DataError` where their strengths differ."""
    present = [layer for layer in layers if layer is not None]
    first = present[0]
    scales = {layer.alpha / layer.rank for layer in present}
    alike = max(scales) - min(scales) <= 1e-6 * max(abs(s) for s in scales)
    if not alike or len({layer.up.dtype for layer in present}) > 1:
        raise DataError(
            f"{place.name} joins {', '.join(layer.path for layer in present)}, whose alpha / rank"
            " or dtype differ; kohya's files have one for all: write the LoRA in the dialect Peft",
            reason="UnevenLora",
        )
    magnitude = _joined_magnitudes(place, layers)
    origins = tuple(dict.fromkeys(name for layer in present for name in layer.origins))
    ups = [None if layer is None else _matrix(layer.up) for layer in layers]
    if len(present) == len(layers) and _same_down(present):
        total = (sum(rows), first.rank)
        up = views.as_one([up for up in ups if up is not None], total)
        return replace(first, up=up, magnitude=magnitude, origins=origins)
    rank = sum(layer.rank for layer in present)
    down = views.as_one([layer.down for layer in present], (rank, *first.down.shape[1:]))
    file = Diagonal(tuple(ups), tuple(rows), rank, name=place.name)
    up = Tensor(file.dtype, (sum(rows), rank), (Segment(file, 0, file.size),))
    alpha = first.alpha if rank == first.rank else first.alpha / first.rank * rank
    return replace(first, down=down, up=up, alpha=alpha, magnitude=magnitude, origins=origins)


def _joined_magnitudes(place: Place, layers: Sequence[Layer | None]) -> Tensor | None:
    found = [None if layer is None else layer.magnitude for layer in layers]
    have = [magnitude for magnitude in found if magnitude is not None]
    if not have:
        return None
    if len(have) != len(layers):
        raise DataError(
            f"{place.name} joins modules of which only some have DoRA's magnitudes; write the LoRA"
            " in the dialect Peft",
            reason="UnevenLora",
        )
    return views.as_one(have, (sum(part.shape[0] for part in have),))


def _same_down(layers: Sequence[Layer]) -> bool:
    """Whether the down matrices hold the same bytes, as after a split of a dense update."""
    downs = [layer.down for layer in layers]
    if len({(d.shape, d.dtype, d.strides is None) for d in downs}) != 1 or len(downs) == 1:
        return False
    first = views.read(downs[0])
    return downs[0].strides is None and all(views.read(d) == first for d in downs[1:])


def part_rows(place: Place, layer: Layer) -> list[int]:
    """Rows of each part of a fused update: the modules of attention are square, and the
    feed-forward layer has the rest. Raises `DataError`."""
    total, square = layer.up.shape[0], layer.down.shape[1]
    count = len(place.parts)
    rows = [square] * 3 + [total - 3 * square] * (count - 3)
    if count not in {3, 4} or sum(rows) != total or min(rows) < 1:
        raise DataError(
            f"{place.name}: an up matrix of {total} rows does not fit to {square} inputs; the LoRA"
            " is of another model",
            reason="WrongShape",
        )
    return rows


def taken_apart(group: Group, *, whole_down: bool = False) -> list[Layer]:
    """The updates of all parts; with `whole_down` every part gets the whole down matrix."""
    place, layer = group.place, group.layer
    if place.swapped:
        up = views.as_one(views.swapped_halves(layer.up), layer.up.shape)
        magnitude = layer.magnitude
        if magnitude is not None:
            magnitude = views.as_one(views.swapped_halves(magnitude), magnitude.shape)
        return [replace(layer, up=up, magnitude=magnitude)]
    if len(place.parts) == 1:
        return [layer]
    rows = part_rows(place, layer)
    spans = None if whole_down else _diagonal(_matrix(layer.up), rows)
    found, at = [], 0
    for index, (path, count) in enumerate(zip(place.parts, rows, strict=True)):
        up, down, alpha = views.rows(_matrix(layer.up), at, at + count), layer.down, layer.alpha
        magnitude = layer.magnitude and views.rows(layer.magnitude, at, at + count)
        at += count
        if spans is not None:
            begin, end = spans[index]
            if begin == end:
                continue
            up, down = views.columns(up, begin, end), views.rows(down, begin, end)
            alpha = layer.alpha / layer.rank * (end - begin)
        found.append(replace(layer, path=path, up=up, down=down, alpha=alpha, magnitude=magnitude))
    return found


def _matrix(up: Tensor) -> Tensor:
    return views.reshaped(up, up.shape[:2])


def _diagonal(up: Tensor, rows: Sequence[int]) -> list[tuple[int, int]] | None:
    """Columns of each part where the blocks stand on a diagonal of even steps, None elsewhere.

    Parts whose rows are all zeros may have no columns, as where they were not trained.
    """
    if up.strides is not None:
        return None
    rank, item = up.shape[1], DTYPE_BYTES[up.dtype]
    used = [_used_columns(views.read(part), rank, item) for part in _split(up, rows)]
    for empty in (False, True):
        here = [i for i, columns in enumerate(used) if columns or not empty]
        if not here or rank % len(here):
            continue
        step = rank // len(here)
        spans = [(0, 0)] * len(rows)
        for order, index in enumerate(here):
            spans[index] = (order * step, (order + 1) * step)
        pairs = zip(used, spans, strict=True)
        fits = all(set(columns) <= set(range(*span)) for columns, span in pairs)
        if fits and any(used):
            return spans
    return None


def _split(up: Tensor, rows: Sequence[int]) -> list[Tensor]:
    parts, at = [], 0
    for count in rows:
        parts.append(views.rows(up, at, at + count))
        at += count
    return parts


def _used_columns(data: bytes, rank: int, item: int) -> list[int]:
    """Columns of a matrix that are not zero in every row."""
    width = rank * item
    return [c for c in range(rank)
            if any(any(data[c * item + k :: width]) for k in range(item))]  # fmt: skip
