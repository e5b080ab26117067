"""Pictures become latent distributions, once, each by itself, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.door import Model
from kubebooth_trainer.train.batches import Example
from kubebooth_trainer.train.dataset import Picture, open_picture


def examples(model: Model, pictures: Sequence[Picture]) -> list[Example]:
    """One example for each picture and repeat. Raises `DataError` that names a bad picture."""
    found: list[Example] = []
    for picture in pictures:
        image = open_picture(picture.read(), name=picture.name, size=picture.size)
        latent = model.encode_picture(image)
        if not (torch.isfinite(latent.mean).all() and torch.isfinite(latent.std).all()):
            raise DataError(
                f"{picture.name}: the VAE of the base model makes NaN of it; check the base model,"
                " or leave the picture out"
            )
        one = Example(latent, picture.geometry, picture.prompt, picture.name)
        found += [one] * picture.repeats
    return found
