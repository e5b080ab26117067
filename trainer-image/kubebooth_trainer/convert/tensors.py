"""One tensor to write: joined, cast or merged from canonical parts, as the options ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubebooth_trainer.convert import views
from kubebooth_trainer.convert.door import Compute, Copy, Planned, Tensor
from kubebooth_trainer.convert.keys.families import Role
from kubebooth_trainer.convert.keys.links import Link
from kubebooth_trainer.convert.models import Loaded, Update, put_together
from kubebooth_trainer.convert.options import DTYPES, Options
from kubebooth_trainer.errors import ConfigurationError, DataError

Updates = Mapping[str, tuple[Update, ...]]
"""Canonical Diffusers name → what is to be added."""


def dtype_for(options: Options, role: Role | None, dtype: str) -> str:
    """Dtype to write a tensor of `role` in; None is a tensor of no network, kept as it is."""
    if role is None or dtype not in views.FLOATS:
        return dtype
    special = {
        "Denoiser": options.component_precision.denoiser,
        "ControlNet": options.component_precision.denoiser,
        "TextEncoder": options.component_precision.text_encoder,
        "Vae": options.component_precision.vae,
    }[role]
    return DTYPES[special or options.precision] or dtype


def of_single(link: Link, loaded: Loaded, options: Options, updates: Updates) -> Planned:
    """A tensor of a single file, prefix included. Raises `DataError`, `ConfigurationError`."""
    name = f"{loaded.prefix}{link.single}"
    inputs = put_together(link, [loaded.parts[part.name] for part in link.parts])
    origins = tuple(dict.fromkeys(o for part in link.parts for o in loaded.origins[part.name]))
    added = [(index, update) for index, part in enumerate(link.parts)
             for update in updates.get(part.name, ())]  # fmt: skip
    dtype = _dtype(name, inputs, loaded.component.role, options)
    if not added:
        return Planned(name, dtype, link.shape, views.joined(inputs, dtype=dtype), origins)
    base = views.as_one(inputs, link.shape)
    factors: list[Tensor] = [base]
    for index, update in added:
        factors += [update.down, _spread(link, index, update)]
    merge = Compute("Merge", tuple(factors), tuple(update.weight for _, update in added))
    origins += tuple(o for _, update in added for o in update.origins)
    return Planned(name, dtype, link.shape, merge, origins)


def of_folder(name: str, loaded: Loaded, options: Options, updates: Updates) -> Planned:
    """A tensor of the Diffusers layout, by its canonical name."""
    tensor = loaded.parts[name]
    dtype = dtype_for(options, loaded.component.role, tensor.dtype)
    added = updates.get(name, ())
    if not added:
        data = views.joined([tensor], dtype=dtype)
        return Planned(name, dtype, tensor.shape, data, loaded.origins[name])
    factors = [tensor]
    for update in added:
        factors += [update.down, update.up]
    merge = Compute("Merge", tuple(factors), tuple(update.weight for update in added))
    origins = loaded.origins[name] + tuple(o for update in added for o in update.origins)
    return Planned(name, dtype, tensor.shape, merge, origins)


def as_it_is(name: str, tensor: Tensor, origin: str, *, dtype: str | None = None) -> Planned:
    """A tensor that is carried along."""
    written = dtype or tensor.dtype
    return Planned(name, written, tensor.shape, views.joined([tensor], dtype=written), (origin,))


def in_order(tensors: Sequence[Planned]) -> tuple[Planned, ...]:
    """Widest values first, so that every tensor of a file without padding is aligned; of equals as
    they lie in their source, so that neighbours stay neighbours and are copied as one."""
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
    files: dict[str, int] = {}

    def place(tensor: Planned) -> tuple[int, int, int]:
        data = tensor.data
        segments = data.segments if isinstance(data, Copy) else data.inputs[0].segments
        if not segments:
            return -widths.get(tensor.dtype, 1), len(tensors), 0
        first = segments[0]
        file = files.setdefault(first.source.name, len(files))
        return -widths.get(tensor.dtype, 1), file, first.start

    return tuple(sorted(tensors, key=place))


def _dtype(name: str, inputs: Sequence[Tensor], role: Role, options: Options) -> str:
    dtypes = {dtype_for(options, role, part.dtype) for part in inputs}
    if len(dtypes) > 1:
        raise DataError(
            f"{name} is joined from tensors of {' and '.join(sorted(dtypes))}; set a precision, so"
            " that they become alike",
            reason="UnevenTensors",
        )
    return dtypes.pop()


def _spread(link: Link, index: int, update: Update) -> Tensor:
    """The up matrix for all rows of a joined tensor: zeros where other parts stand."""
    up, rank = update.up, update.up.shape[1]
    if link.how == "Transpose":
        raise ConfigurationError(
            f"mergeLoras: {link.parts[0].name} is not merged; train the update without it",
            reason="UnsupportedLora",
        )
    if link.how == "Swap":
        return views.as_one(views.swapped_halves(up), up.shape)
    if link.how != "Join":
        return up
    rows = [part.shape[0] for part in link.parts]
    before, after = sum(rows[:index]), sum(rows[index + 1 :])
    pieces = [views.zeros(up.dtype, (before, rank)), up, views.zeros(up.dtype, (after, rank))]
    return views.as_one(pieces, (sum(rows), rank))
