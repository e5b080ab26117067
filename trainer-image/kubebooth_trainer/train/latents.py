"""Pictures become latent distributions, once, each by itself, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.door import Geometry, Model
from kubebooth_trainer.train.batches import Example
from kubebooth_trainer.train.dataset import Picture, open_square


def examples(model: Model, pictures: Sequence[Picture], *, resolution: int) -> list[Example]:
    """One example for each picture and repeat. Raises `DataError` that names a bad picture."""
    found: list[Example] = []
    for picture in pictures:
        image = open_square(picture.path, name=picture.name, resolution=resolution)
        latent = model.encode_picture(image)
        if not (torch.isfinite(latent.mean).all() and torch.isfinite(latent.std).all()):
            raise DataError(
                f"{picture.name}: the VAE of the base model makes NaN of it; check the base model,"
                " or leave the picture out"
            )
        edge = (resolution, resolution)
        whole = Geometry(original=edge, crop=(0, 0), target=edge)
        found += [Example(latent, whole, picture.prompt, picture.name)] * picture.repeats
    return found
