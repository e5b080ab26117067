"""A source as one canonical model: every tensor under its Diffusers name, whatever it came as.

Every tensor of the source is placed, known to have no place, or refused. Nothing here decides what
is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubebooth_trainer.convert import views
from kubebooth_trainer.convert.declared import json_of
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened, Tensor
from kubebooth_trainer.convert.keys.families import CONTROLNET, FAMILIES, Component, aside
from kubebooth_trainer.convert.keys.links import Link, Part
from kubebooth_trainer.convert.keys.sizes import Config, Found
from kubebooth_trainer.errors import DataError

SIDE = "kubebooth"
"""Folder of a Diffusers layout that keeps what the layout itself has no place for."""


@dataclass(frozen=True)
class Loaded:
    """One network of a model."""

    component: Component
    prefix: str
    """Prefix in a single file."""
    sizes: Any
    links: tuple[Link, ...]
    parts: Mapping[str, Tensor]
    """By canonical Diffusers name, without the folder."""
    origins: Mapping[str, tuple[str, ...]]
    """Canonical Diffusers name → names in the source."""
    config: Mapping[str, Any] | None = None
    """Its config, where the source has one."""


@dataclass(frozen=True)
class Update:
    """A low-rank update of one tensor: weight · up @ down."""

    down: Tensor
    """[rank, in …]"""
    up: Tensor
    """[out, rank]"""
    weight: float
    origins: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """All networks of a source, and the rest."""

    components: Mapping[str, Loaded]
    """By folder."""
    aside: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of single files that the Diffusers layout has no place for, by full name."""
    foreign: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of components that the family does not count, by full Diffusers name."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Names of source tensors that no reader needs → why."""
    updates: Mapping[str, Mapping[str, tuple[Update, ...]]] = field(default_factory=dict)
    """Folder → canonical Diffusers name → what is to be added to the tensor."""


def load(opened: Opened, found: Detected) -> Model:
    """Place every tensor of a source. Raises `DataError` that names tensors and the cure."""
    return (
        _load_folder(opened, found) if opened.form == "Diffusers" else _load_single(opened, found)
    )


def components_of(found: Detected) -> tuple[Component, ...]:
    """The networks that a source of this kind can have."""
    if found.kind == "ControlNet":
        return (CONTROLNET,)
    if found.kind == "Vae":
        return (FAMILIES[found.layout or "sd1"].vae,)
    return FAMILIES[found.layout or "sd1"].components


# --- Diffusers layout


def _load_folder(opened: Opened, found: Detected) -> Model:
    alone = found.kind != "Pipeline"
    by_folder: dict[str, dict[str, Tensor]] = {}
    for name, tensor in opened.tensors.items():
        folder, _, rest = ("", "", name) if alone else name.partition("/")
        by_folder.setdefault(folder, {})[rest] = tensor
    kept = by_folder.pop(SIDE, {})
    loaded: dict[str, Loaded] = {}
    unread: dict[str, str] = {}
    for component in components_of(found):
        place = "" if alone else component.folder
        if place in by_folder:
            tensors = by_folder.pop(place)
            loaded[component.folder] = _folder_component(opened, component, place, tensors, unread)
    foreign = {
        f"{folder}/{name}": tensor
        for folder, tensors in by_folder.items()
        for name, tensor in tensors.items()
    }
    return Model(loaded, aside=kept, foreign=foreign, unread=unread)


def _folder_component(
    opened: Opened,
    component: Component,
    place: str,
    tensors: Mapping[str, Tensor],
    unread: dict[str, str],
) -> Loaded:
    file = f"{place}/config.json" if place else "config.json"
    values = json_of(opened, file)
    if values is None:
        raise DataError(
            f"{file} is missing; copy the whole folder, configs included", reason="NoConfig"
        )
    network = component.network
    sizes = network.from_config(Config(values, file=file))
    links = network.links(sizes)
    wanted = {part.name: part for link in links for part in link.parts}
    parts: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    unknown = []
    for name, tensor in tensors.items():
        full, canonical = f"{place}/{name}" if place else name, network.canonical(name)
        if canonical in wanted and canonical not in parts:
            parts[canonical] = shaped(tensor, wanted[canonical].shape, full)
            origins[canonical] = (full,)
        elif canonical in network.unread:
            unread[full] = "no reader of this family needs it"
        else:
            unknown.append(full)
    what = place or network.class_name
    _refuse_unknown(unknown, what)
    _refuse_missing([part for part in wanted.values() if part.name not in parts], what)
    return Loaded(component, component.prefixes[0], sizes, tuple(links), parts, origins, values)


# --- single files


def _load_single(opened: Opened, found: Detected) -> Model:
    by_prefix: dict[str, dict[str, str]] = {prefix: {} for prefix in found.prefixes.values()}
    ordered = sorted(by_prefix, key=len, reverse=True)
    rest: list[str] = []
    for name in opened.tensors:
        prefix = next((p for p in ordered if name.startswith(p)), None)
        if prefix is None:
            rest.append(name)
        else:
            by_prefix[prefix][name.removeprefix(prefix)] = name
    loaded: dict[str, Loaded] = {}
    for component in components_of(found):
        prefix = found.prefixes.get(component.folder)
        if prefix is not None:
            one, left = _single_component(opened, component, prefix, by_prefix[prefix])
            loaded[component.folder] = one
            rest += left
    # A denoiser's averaged weights are known by their names, which no prefix tells.
    unknown = [name for name in rest if aside(name) is None]
    _refuse_unknown(unknown, "the file")
    return Model(loaded, aside={name: opened.tensors[name] for name in rest})


def _single_component(
    opened: Opened, component: Component, prefix: str, names: Mapping[str, str]
) -> tuple[Loaded, list[str]]:
    """The network under a prefix, and the full names that are not of it."""
    network = component.network
    canonical: dict[str, str] = {}
    left: list[str] = []
    for name, full in names.items():
        word = network.canonical_single(name)
        if word in canonical:
            left.append(full)
        else:
            canonical[word] = full
    shapes = {word: opened.tensors[full].shape for word, full in canonical.items()}
    sizes = network.from_single(Found(shapes, what=prefix.rstrip(".") or "the file"))
    links = network.links(sizes)
    parts: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    missing: list[Part] = []
    for link in links:
        full_name = canonical.pop(link.single, None)
        if full_name is None:
            missing.append(Part(link.single, link.shape))
            continue
        tensor = shaped(opened.tensors[full_name], link.shape, full_name)
        for part, view in zip(link.parts, taken_apart(link, tensor), strict=True):
            parts[part.name] = view
            origins[part.name] = (full_name,)
    _refuse_missing(missing, prefix.rstrip(".") or "the file")
    left += canonical.values()
    return Loaded(component, prefix, sizes, tuple(links), parts, origins), left


# --- one tensor


def taken_apart(link: Link, tensor: Tensor) -> list[Tensor]:
    """A tensor of a single file as those of the Diffusers layout, in the order of the link."""
    if link.how == "Join":
        found, start = [], 0
        for part in link.parts:
            found.append(views.rows(tensor, start, start + part.shape[0]))
            start += part.shape[0]
        return found
    if link.how == "Swap":
        return [views.as_one(views.swapped_halves(tensor), tensor.shape)]
    if link.how == "Transpose":
        return [views.transposed(tensor)]
    return [views.reshaped(tensor, link.parts[0].shape)]


def put_together(link: Link, parts: list[Tensor]) -> list[Tensor]:
    """The inverse: tensors whose rows, one after another, are the single file's."""
    if link.how == "Join":
        return parts
    if link.how == "Swap":
        return list(views.swapped_halves(parts[0]))
    if link.how == "Transpose":
        return [views.transposed(parts[0])]
    return [views.reshaped(parts[0], link.shape)]


def shaped(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """The tensor in the shape that it must have; ones at the end may differ, as 1x1 convolutions
    and linear layers do."""
    if tensor.shape == shape:
        return tensor
    if _without_ones(tensor.shape) == _without_ones(shape):
        return views.reshaped(tensor, shape)
    raise DataError(
        f"{name} has shape {list(tensor.shape)}, but the rest of the model wants {list(shape)}; it"
        " is damaged or of another model",
        reason="WrongShape",
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    edges = list(shape)
    while len(edges) > 1 and edges[-1] == 1:
        edges.pop()
    return tuple(edges)


def _refuse_unknown(names: list[str], what: str) -> None:
    if names:
        raise DataError(
            f"{what} holds {_some(names)} that no rule knows; nothing is converted that would lose"
            " a tensor silently: remove it from the source, or convert a model of a known family",
            reason="UnknownTensor",
        )


def _refuse_missing(parts: list[Part], what: str) -> None:
    if parts:
        raise DataError(
            f"{what} lacks {_some([part.name for part in parts])}; the source is incomplete, take"
            " a whole one",
            reason="MissingTensor",
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(name[:120] for name in listed[:3])
    return shown if len(listed) <= 3 else f"{shown} and {len(listed) - 3} more"
