"""Which pictures, noise and timesteps an update sees: a pure function of its number.

Everything is keyed by the global number of the sample, so a restart changes nothing; which sample
stands in which batch is told by `order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor

from kubebooth_trainer.errors import InternalFault
from kubebooth_trainer.families.door import Geometry, LatentNormal, Model
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.order import Seating


@dataclass(frozen=True)
class Example:
    """A picture as the loop sees it."""

    latent: LatentNormal
    geometry: Geometry
    prompt: str
    name: str


@dataclass(frozen=True)
class Batch:
    """One forward pass over pictures of one shape: instance samples first, then as many class
    samples, or none."""

    latents: Tensor
    """float32 [n, channels, h, w], scaled."""
    noise: Tensor
    """float32, same shape."""
    timesteps: Tensor
    """[n], as the family counts them."""
    geometry: tuple[Geometry, ...]
    prompts: tuple[str, ...]
    instances: int
    """How many of the n are instance samples."""
    names: tuple[str, ...]


class Feed:
    """Makes the batches of stages that train on the same pictures."""

    def __init__(
        self,
        model: Model,
        *,
        instances: Sequence[Example],
        classes: Sequence[Example],
        training: Training,
        device: torch.device,
    ) -> None:
        self._model, self._training, self._device = model, training, device
        self._instances = instances
        self._classes: dict[tuple[int, int], list[Example]] = {}
        for example in classes:
            self._classes.setdefault(example.geometry.target, []).append(example)
        self._seatings: dict[str, Seating] = {}
        self._orders: dict[str, draws.Order] = {}

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that batches ask for, as far as they can be told; shuffled ones cannot."""
        asked = [example.prompt for example in chain(*self._classes.values())]
        asked += [example.prompt for example in self._instances if self._is_fixed(example.prompt)]
        empty = ("",) if self._training.caption_dropout > 0 else ()
        return tuple(dict.fromkeys((*asked, *empty)))

    def batch(self, stage: str, step: int, *, part: int) -> Batch:
        """The forward pass number `part` of the update number `step` (from 0) of a stage."""
        seats = self._seating(stage).batch(step * self._training.gradient_accumulation + part)
        samples = [
            self._sample(self._instances[seat.place], "instance", stage, seat.number)
            for seat in seats
        ]
        if self._classes:
            samples += [
                self._sample(
                    self._company(stage, seat.company, samples[0].geometry.target),
                    "class", stage, seat.number,
                )
                for seat in seats
            ]  # fmt: skip
        return Batch(
            latents=torch.stack([sample.latents for sample in samples]).to(self._device),
            noise=torch.stack([sample.noise for sample in samples]).to(self._device),
            timesteps=self._model.timesteps(
                torch.tensor([sample.share for sample in samples], dtype=torch.float64),
                sampling=self._training.timestep_sampling,
                size=samples[0].geometry.target,
            ).to(self._device),
            geometry=tuple(sample.geometry for sample in samples),
            prompts=tuple(sample.prompt for sample in samples),
            instances=len(seats),
            names=tuple(sample.name for sample in samples),
        )

    def _sample(self, example: Example, kind: str, stage: str, number: int) -> _Sample:
        seed, dropout = self._training.seed, self._training.caption_dropout
        shape = example.latent.mean.shape

        def normal(purpose: str, size: Sequence[int] = shape) -> Tensor:
            return draws.normal(size, seed, f"{kind} {purpose}", stage, number)

        noise = normal("noise")
        if self._training.offset_noise > 0:
            noise = noise + self._training.offset_noise * normal("offset", (shape[0], 1, 1))
        # Class samples keep their prompt: they hold the class, not the empty prompt, in place.
        dropped = kind == "instance" and draws.chance(
            dropout, seed, "caption dropout", stage, number
        )
        return _Sample(
            latents=self._model.latents(example.latent, normal("latent")),
            noise=noise,
            share=draws.share(seed, f"{kind} timestep", stage, number),
            geometry=example.geometry,
            prompt="" if dropped else self._prompt(example, kind, stage, number),
            name=example.name,
        )

    def _prompt(self, example: Example, kind: str, stage: str, number: int) -> str:
        if kind != "instance" or not self._training.caption_shuffle:
            return example.prompt
        parts = [part.strip() for part in example.prompt.split(",")]
        kept = self._training.caption_keep_tokens
        places = draws.order(
            len(parts[kept:]), self._training.seed, "caption shuffle", stage, number
        )
        return ", ".join([*parts[:kept], *(parts[kept:][place] for place in places)])

    def _is_fixed(self, prompt: str) -> bool:
        """Whether a caption reaches the text encoder as it is written."""
        return not self._training.caption_shuffle or "," not in prompt

    def _seating(self, stage: str) -> Seating:
        if stage not in self._seatings:
            self._seatings[stage] = Seating(
                [example.geometry.target for example in self._instances],
                batch_size=self._training.batch_size,
                seed=self._training.seed,
                purpose=f"instance order {stage}",
            )
        return self._seatings[stage]

    def _company(self, stage: str, nth: int, size: tuple[int, int]) -> Example:
        """The class picture for the sample number `nth` of a shape."""
        pool = self._classes.get(size)
        if not pool:
            raise InternalFault(f"no class image is {size[1]}x{size[0]} px, but training pictures")
        one_shape = len(self._classes) == 1
        purpose = f"class order {stage}" + ("" if one_shape else f" {size[1]}x{size[0]}")
        if purpose not in self._orders:
            self._orders[purpose] = draws.Order(
                len(pool), seed=self._training.seed, purpose=purpose
            )
        return pool[self._orders[purpose].at(nth)]


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    noise: Tensor
    share: float
    geometry: Geometry
    prompt: str
    name: str


def prior_loss(losses: Tensor, *, instances: int, weight: float) -> Tensor:
    """Mean instance loss plus `weight` times mean class loss, of losses [n] with classes last."""
    loss = losses[:instances].mean()
    if len(losses) > instances:
        loss = loss + weight * losses[instances:].mean()
    return loss
