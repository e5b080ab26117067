"""A loss on pictures that are never trained on, always with the same noise and timesteps.

Training losses jump with every draw of noise; this one moves only when the model does. It must not
know stages or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor, nn

from kubebooth_trainer.families.door import Conditioning, Model, Weighting
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.batches import Example

TIMESTEPS = 8
"""Timesteps at which each picture is measured, evenly spaced over all that training draws."""


class Validation:
    """Measures the present weights on the held-out pictures."""

    def __init__(
        self,
        model: Model,
        pictures: Sequence[Example],
        *,
        training: Training,
        device: torch.device,
    ) -> None:
        self._model, self._pictures, self._training = model, pictures, training
        self._device = device

    def loss(self, embed: Callable[[Sequence[str]], Conditioning]) -> float:
        """Mean over pictures and timesteps of the loss without min-SNR weights.

        Latents are the VAE's mean. Pictures are taken one by one and timesteps in batches of the
        training's size, so that no more memory is needed than for an update.
        """
        with _resting(self._model), torch.no_grad():
            losses = [
                self._measured(number, picture, places, embed).double()
                for number, picture in enumerate(self._pictures)
                for places in _cut(range(TIMESTEPS), self._training.batch_size)
            ]
        return float(torch.cat(losses).mean())

    def _measured(
        self,
        number: int,
        picture: Example,
        places: Sequence[int],
        embed: Callable[[Sequence[str]], Conditioning],
    ) -> Tensor:
        shape, count = picture.latent.mean.shape, len(places)
        latent = self._model.latents(picture.latent, torch.zeros(shape))
        noise = [
            draws.normal(shape, self._training.seed, "validation noise", number, place)
            for place in places
        ]
        shares = torch.tensor([(place + 0.5) / TIMESTEPS for place in places], dtype=torch.float64)
        return self._model.losses(
            latent.expand(count, *shape).to(self._device),
            noise=torch.stack(noise).to(self._device),
            timesteps=self._model.timesteps(
                shares,
                sampling=self._training.timestep_sampling,
                size=picture.geometry.target,
            ).to(self._device),
            conditioning=embed([picture.prompt] * count),
            geometry=[picture.geometry] * count,
            weighting=Weighting(guidance=self._training.guidance),
        ).cpu()


@contextmanager
def _resting(model: Model) -> Iterator[None]:
    """Without dropout; afterwards every module is in the mode it was in."""
    modules = {id(m): m for part in model.parts.values() for m in part.modules()}
    before: list[tuple[nn.Module, bool]] = [(m, m.training) for m in modules.values()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def _cut(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
