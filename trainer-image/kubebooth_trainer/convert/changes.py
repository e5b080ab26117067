"""What the options change in a model's values: averaged weights, another VAE, low-rank updates.

Casts are no change here: they happen to each tensor as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kubebooth_trainer.convert import merging, models
from kubebooth_trainer.convert.detection import Detected, detect
from kubebooth_trainer.convert.door import Opened, Tensor
from kubebooth_trainer.convert.keys.families import averaged
from kubebooth_trainer.convert.models import Loaded, Model
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.errors import ConfigurationError, DataError

_EMA = "model_ema."


def applied(
    model: Model, opened: Opened, options: Options, found: Detected
) -> tuple[Model, dict[str, str]]:
    """The model as asked for, and what was left out of it: source tensor → why.

    Raises `DataError` and `ConfigurationError`.
    """
    dropped: dict[str, str] = {}
    if options.ema != "Keep":
        model = _without_averages(model, opened, options, dropped)
    if options.vae is not None:
        model = _with_vae(model, options.vae, options, found, dropped)
    if options.merge_loras:
        model = merging.merged(model, options.merge_loras, found)
    return model, dropped


def _without_averages(
    model: Model, opened: Opened, options: Options, dropped: dict[str, str]
) -> Model:
    averages = {name: t for name, t in model.aside.items() if name.startswith(_EMA)}
    kept = {name: t for name, t in model.aside.items() if name not in averages}
    side = f"{models.SIDE}/" if opened.form == "Diffusers" else ""
    components = dict(model.components)
    if options.ema == "Use":
        plain = next(c for c in components.values() if c.component.role == "Denoiser")
        changed = _averaged(plain, averages, side)
        components[plain.component.folder] = changed
        used = {name for names in changed.origins.values() for name in names}
        averages = {name: t for name, t in averages.items() if f"{side}{name}" not in used}
        for names in plain.origins.values():
            dropped.update((name, "the averaged weights take its place") for name in names)
    dropped.update((f"{side}{name}", "averaged weights, which were not asked for")
                   for name in averages)  # fmt: skip
    return replace(model, components=components, aside=kept)


def _averaged(denoiser: Loaded, averages: Mapping[str, Tensor], side: str) -> Loaded:
    """The denoiser with averaged weights in place of all plain ones."""
    parts, origins = dict(denoiser.parts), dict(denoiser.origins)
    by_flat = {name.replace(".", ""): name for name in averages}
    for link in denoiser.links:
        wanted = averaged(link.single)
        name = by_flat.get(wanted.replace(".", ""))
        if name is None:
            raise DataError(
                f"ema: the averaged weights lack {wanted}; set it to Drop", reason="MissingTensor"
            )
        tensor = models.shaped(averages[name], link.shape, name)
        for part, view in zip(link.parts, models.taken_apart(link, tensor), strict=True):
            parts[part.name], origins[part.name] = view, (f"{side}{name}",)
    return replace(denoiser, parts=parts, origins=origins)


def _with_vae(
    model: Model, source: Opened, options: Options, found: Detected, dropped: dict[str, str]
) -> Model:
    given = detect(source, Options("Safetensors", variant="Auto"))
    if given.kind not in {"Vae", "Pipeline"}:
        raise ConfigurationError(
            f"vae: a {given.kind} was given; name a VAE or a pipeline that has one",
            reason="ComponentMismatch",
        )
    fits = given.layout is None or given.layout == found.layout
    if not fits and {given.layout, found.layout} != {"sd1", "sd2"}:
        raise ConfigurationError(
            f"vae: it is of the family {given.family}, the source is {found.family}; name a VAE of"
            " the same family",
            reason="WrongFamily",
        )
    other = models.load(source, replace(given, layout=given.layout or found.layout))
    vae = next((c for c in other.components.values() if c.component.role == "Vae"), None)
    old = next((c for c in model.components.values() if c.component.role == "Vae"), None)
    if vae is None:
        raise ConfigurationError("vae: the given pipeline has none; name another",
                                 reason="ComponentMismatch")  # fmt: skip
    if old is None:
        raise ConfigurationError(
            "vae: the source has none to replace; convert a whole pipeline",
            reason="ComponentMismatch",
        )
    if vae.sizes.latents != old.sizes.latents:
        raise ConfigurationError(
            f"vae: it has {vae.sizes.latents} latent channels, the source {old.sizes.latents}; name"
            " a VAE of the same family",
            reason="WrongFamily",
        )
    for names in old.origins.values():
        dropped.update((name, "another VAE takes its place") for name in names)
    origins = {part: tuple(f"vae:{name}" for name in names) for part, names in vae.origins.items()}
    new = replace(
        vae, component=old.component, prefix=old.prefix, origins=origins,
        config=old.config if vae.config is None and vae.sizes == old.sizes else vae.config,
    )  # fmt: skip
    return replace(model, components={**model.components, old.component.folder: new})
