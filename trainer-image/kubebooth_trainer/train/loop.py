"""The updates of one stage; it knows steps and batches, the family knows the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Model, Weighting
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.batches import Batch, Feed, prior_loss
from kubebooth_trainer.train.stages import Stage
from kubebooth_trainer.train.updates import Updates
from kubebooth_trainer.train.words import Words


@dataclass(frozen=True)
class Reading:
    """What one update told."""

    step: int
    """Updates of the stage that are done."""
    loss: float
    learning_rate: float


def train_stage(
    stage: Stage,
    *,
    model: Model,
    feed: Feed,
    words: Words,
    updates: Updates,
    training: Training,
    first: int,
) -> Iterator[Reading]:
    """Make the updates from number `first` (from 0) to the stage's target, one for each reading.

    Raises `ConfigurationError` that names step and pictures when the loss is not finite.
    """
    for step in range(first, stage.steps):
        parts = [
            feed.batch(stage.name, step, part=part)
            for part in range(training.gradient_accumulation)
        ]
        seed = draws.key(training.seed, "dropout", stage.name, step) >> 1

        def backward(scale: float, parts: Sequence[Batch] = parts, seed: int = seed) -> Tensor:
            # Nothing in these models draws at random, but a base with dropout must resume exactly
            # too, and give the same gradients when an update asks for them again.
            torch.manual_seed(seed)
            return _backward(parts, scale, model=model, words=words, training=training)

        try:
            loss, rate = updates.apply(step, backward)
        except ConfigurationError as error:
            raise _explained(error, stage, step, parts) from error
        yield Reading(step + 1, loss, rate)


def _backward(
    parts: Sequence[Batch], scale: float, *, model: Model, words: Words, training: Training
) -> Tensor:
    """Leave the gradients of the mean loss times `scale`; gives the mean loss."""
    weight = training.prior_preservation.weight if training.prior_preservation else 0.0
    total = torch.zeros(())
    for batch in parts:
        losses = model.losses(
            batch.latents,
            noise=batch.noise,
            timesteps=batch.timesteps,
            conditioning=words.of(batch.prompts),
            geometry=batch.geometry,
            weighting=Weighting(training.min_snr_gamma, training.guidance),
        )
        loss = prior_loss(losses, instances=batch.instances, weight=weight) / len(parts)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach().cpu()
    return total


def _explained(
    error: ConfigurationError, stage: Stage, step: int, parts: Sequence[Batch]
) -> ConfigurationError:
    names = list(dict.fromkeys(name for batch in parts for name in batch.names))
    shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    fields = {"TextEncoder": "textEncoder", "Concept": "conceptStage", "Denoiser": "denoiser"}
    return ConfigurationError(
        f"{error.message} at step {step + 1} of {stage.name} (pictures: {shown}); lower"
        f" training.{fields[stage.name]}.learningRate, or set training.mixedPrecision: Bf16 or No",
        reason=error.reason,
    )
