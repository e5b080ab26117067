"""Low-rank updates added to a model's weights; the sums themselves are made while writing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kubebooth_trainer.convert import lora_fusing
from kubebooth_trainer.convert.detection import Detected, detect
from kubebooth_trainer.convert.keys.families import FAMILIES
from kubebooth_trainer.convert.keys.lora import ldm_modules
from kubebooth_trainer.convert.lora_layers import Layer, groups
from kubebooth_trainer.convert.models import Model, Update
from kubebooth_trainer.convert.options import Merged
from kubebooth_trainer.convert.views import reshaped
from kubebooth_trainer.errors import ConfigurationError, DataError


def merged(model: Model, updates: Sequence[Merged], found: Detected) -> Model:
    """The model with every update added.

    Raises `ConfigurationError` for updates of another family or of a kind that is no plain LoRA,
    and `DataError` for modules that the model does not have.
    """
    unet = model.components.get("unet")
    ldm = ldm_modules(unet.links) if unet is not None else None
    added: dict[str, dict[str, tuple[Update, ...]]] = {}
    for given in updates:
        kind = detect(given.update)
        if kind.kind != "Lora":
            raise ConfigurationError(
                f"mergeLoras: {given.name} is a {kind.kind}, not a LoRA; name a file of low-rank"
                " updates",
                reason="ComponentMismatch",
            )
        if kind.layout is not None and kind.layout != found.layout:
            raise ConfigurationError(
                f"mergeLoras: {given.name} is made for {FAMILIES[kind.layout].title}, the source is"
                f" {FAMILIES[found.layout or 'sd1'].title}; name one of the same family",
                reason="WrongFamily",
            )
        for group in groups(given.update, found.layout, ldm):
            for layer in lora_fusing.taken_apart(group, whole_down=True):
                name, update = _update(model, given, layer)
                of_folder = added.setdefault(layer.folder, {})
                of_folder[name] = (*of_folder.get(name, ()), update)
    return replace(model, updates=added)


def _update(model: Model, given: Merged, layer: Layer) -> tuple[str, Update]:
    """Canonical name of the weight and what is added to it."""
    where = f"{layer.folder}.{layer.path}"
    if layer.magnitude is not None:
        raise ConfigurationError(
            f"mergeLoras: {given.name} is a DoRA ({where}), which rescales the weights; merge it"
            " with the program that trained it",
            reason="UnsupportedLora",
        )
    loaded = model.components.get(layer.folder)
    name = f"{layer.path}.weight"
    weight = loaded.parts.get(name) if loaded is not None else None
    if weight is None:
        raise DataError(
            f"mergeLoras: {given.name} changes {where}, which the source does not have; it is made"
            " for another model",
            reason="WrongFamily",
        )
    inputs, outputs = math.prod(weight.shape[1:]), weight.shape[0]
    if math.prod(layer.down.shape[1:]) != inputs or layer.up.shape[0] != outputs:
        raise DataError(
            f"mergeLoras: {given.name} has an update of {layer.up.shape[0]} x"
            f" {math.prod(layer.down.shape[1:])} for {where}, whose weight is {outputs} x {inputs};"
            " it is made for another model",
            reason="WrongFamily",
        )
    up = reshaped(layer.up, layer.up.shape[:2])
    strength = given.weight * layer.alpha / layer.rank
    origins = tuple(f"{given.name}:{origin}" for origin in layer.origins)
    return name, Update(layer.down, up, strength, origins)
