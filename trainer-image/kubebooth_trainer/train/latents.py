"""Pictures become latent distributions, once, each by itself, in float32, and stay in the store.

A latent is found by the digest of its picture's bytes and by its size, never by its place, so it
cannot come to another picture's caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import torch
from PIL import Image, ImageOps

from kubebooth_trainer.errors import DataError, Preempted
from kubebooth_trainer.families.door import Geometry, LatentNormal, Model
from kubebooth_trainer.train.batches import Example
from kubebooth_trainer.train.cache import Cache, Form, Named
from kubebooth_trainer.train.dataset import Picture, open_picture

EDGE_STEP = 16
"""Edges of resized pictures are multiples of this: latents of every family can be packed."""


@dataclass(frozen=True)
class _Wanted:
    """A picture to encode at a size, and the key of what comes of it."""

    key: str
    picture: Picture
    size: tuple[int, int]


def at_resolution(geometry: Geometry, *, prepared: int, wanted: int) -> Geometry:
    """The same cut for a stage that trains at another resolution than pictures were prepared at."""
    if prepared == wanted:
        return geometry
    share = wanted / prepared
    height, width = (
        max(EDGE_STEP, round(edge * share / EDGE_STEP) * EDGE_STEP) for edge in geometry.target
    )
    top, left = geometry.crop
    return Geometry(geometry.original, (round(top * share), round(left * share)), (height, width))


def examples(
    model: Model,
    pictures: Sequence[Picture],
    *,
    cache: Cache,
    stop: Event,
    on_done: Callable[[int], None] = lambda _count: None,
    prepared: int = 1,
    wanted: int = 1,
) -> list[Example]:
    """One example for each picture and repeat, at the resolution `wanted` instead of `prepared`.

    Raises `DataError` that names a bad picture, and `Preempted` when `stop` is set; what is encoded
    by then is kept.
    """
    geometries = [at_resolution(p.geometry, prepared=prepared, wanted=wanted) for p in pictures]
    asked = [_wanted(p, g.target) for p, g in zip(pictures, geometries, strict=True)]
    by_key = {one.key: one for one in asked}
    forms = {key: _form(model, one.size) for key, one in by_key.items()}

    def compute(keys: Sequence[str]) -> Iterator[Named]:
        return _encoded(model, [by_key[key] for key in keys], stop=stop)

    latents = cache.all_of(forms, compute, on_done=on_done)
    found: list[Example] = []
    for one, geometry in zip(asked, geometries, strict=True):
        normal = latents[one.key]
        example = Example(
            LatentNormal(normal["mean"], normal["std"]),
            geometry,
            one.picture.prompt,
            one.picture.name,
        )
        found += [example] * one.picture.repeats
    return found


def _wanted(picture: Picture, size: tuple[int, int]) -> _Wanted:
    digest = hashlib.sha256(picture.read()).hexdigest()
    return _Wanted(f"{digest}-{size[0]}x{size[1]}", picture, size)


def _form(model: Model, size: tuple[int, int]) -> Form:
    shape = model.latent_shape(size)
    return Form({"mean": shape, "std": shape}, {"mean": torch.float32, "std": torch.float32})


def _encoded(model: Model, wanted: Sequence[_Wanted], *, stop: Event) -> Iterator[Named]:
    """Encode one by one, so that no latent depends on others; the next is decoded meanwhile."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as beside:
        ahead = [beside.submit(_opened, one) for one in wanted[:1]]
        for place, one in enumerate(wanted):
            if stop.is_set():
                raise Preempted("stopped while encoding pictures; those encoded so far are kept")
            image = ahead.pop().result()
            ahead = [
                beside.submit(_opened, following) for following in wanted[place + 1 : place + 2]
            ]
            latent = model.encode_picture(image)
            if not (torch.isfinite(latent.mean).all() and torch.isfinite(latent.std).all()):
                raise DataError(
                    f"{one.picture.name}: the VAE of the base model makes NaN of it; check the base"
                    " model, or leave the picture out"
                )
            yield {"mean": latent.mean, "std": latent.std}


def _opened(one: _Wanted) -> Image.Image:
    picture = one.picture
    image = open_picture(picture.read(), name=picture.name, size=picture.size)
    height, width = one.size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def vae_identity(files: Mapping[str, str]) -> dict[str, object]:
    """What names a VAE: the digests of its files, by path below the base model's folder."""
    return {"vae": {path: sha for path, sha in files.items() if path.startswith("vae/")}}
