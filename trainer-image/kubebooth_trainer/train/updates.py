"""Optimizer, weight average and loss scale of one stage: all of a checkpoint but the position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor, nn

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.train.fused import norm_of, norm_of_all, one_by_one
from kubebooth_trainer.train.optimizers import Optimizer
from kubebooth_trainer.train.schedule import learning_rate
from kubebooth_trainer.train.stages import Part, Stage, settings_of
from kubebooth_trainer.train.weights import Weights

LARGEST_AVERAGE = 4 << 30
"""Bytes of a weight average that an accelerator keeps; a larger one stays in the host's memory."""
FIRST_SCALE, LOWEST_SCALE, GROW_AFTER = 65536.0, 2.0**-10, 2000
"""Loss scale of fp16: halved when gradients overflow, doubled after so many good updates."""


@dataclass(frozen=True)
class Facts:
    """The few numbers that go with the tensors of a checkpoint."""

    loss_scale: float
    good_updates: int


class Updates:
    """Applies gradients to the parts of a stage."""

    def __init__(
        self,
        weights: Weights,
        stage: Stage,
        *,
        training: Training,
        placement: Placement,
        fused: bool = False,
    ) -> None:
        """`fused` updates each weight within the backward pass, so that gradients never exist
        together; not with several backward passes for an update, nor with fp16's loss scale."""
        self._fused = fused
        self._stage, self._training = stage, training
        weights.learn(stage.parts)
        self._named: dict[Part, dict[str, nn.Parameter]] = {
            part: weights.of(part) for part in stage.parts
        }
        self._all = [weight for named in self._named.values() for weight in named.values()]
        self._optimizer = Optimizer(training, self._named)
        self._scaled = placement.autocast == torch.float16
        self.facts = Facts(FIRST_SCALE if self._scaled else 1.0, 0)
        self._average: dict[str, Tensor] = {}
        if training.ema is not None and stage.name == "Denoiser":
            self._average = _copied(self._named["denoiser"])

    def apply(self, step: int, backward: Callable[[float], Tensor]) -> tuple[float, float]:
        """Make update number `step` (from 0); its loss and the learning rate of the last part.

        `backward(scale)` computes the loss, leaves the gradients of loss * scale, and gives the
        loss; called again it does the same. A step whose fp16 gradients overflow is done again at
        half the scale, so that step numbers count updates. Raises `ConfigurationError` when loss
        or gradients are not finite, before any weight has changed.
        """
        rate = self._set_rates(step)
        loss = self._in_two_passes(backward) if self._fused else self._at_once(backward)
        self._grow()
        self._follow(step)
        return loss, rate

    def _at_once(self, backward: Callable[[float], Tensor]) -> float:
        while True:
            loss = _finite(backward(self.facts.loss_scale))
            norm = self._clip()
            if norm == norm and norm != float("inf"):
                break
            if not self._scaled or self.facts.loss_scale <= LOWEST_SCALE:
                raise _not_finite()
            self.facts = Facts(self.facts.loss_scale / 2, 0)
            self._optimizer.zero_grad()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _in_two_passes(self, backward: Callable[[float], Tensor]) -> float:
        """The same update, to the bit, with the gradient of one weight at a time."""
        norms: dict[nn.Parameter, Tensor] = {}
        share: Tensor | None = None

        def take(weight: nn.Parameter) -> None:
            if weight.grad is None:
                return
            norms[weight] = norm_of(weight.grad)
            if share is None:
                return
            if shorten:
                weight.grad.mul_(share.to(weight.grad.device))
            self._optimizer.step_one(weight)

        def made() -> tuple[float, Tensor]:
            norms.clear()
            with one_by_one(self._all, take):
                loss = _finite(backward(1.0))
            seen = [norms[weight] for weight in self._all if weight in norms]
            norm = norm_of_all(seen) if seen else torch.zeros(())
            if not torch.isfinite(norm):
                raise _not_finite()
            return loss, norm

        shorten = False
        loss, norm = made()
        share = self._training.max_grad_norm / (norm + 1e-6)
        shorten = bool(share < 1)
        made()
        return loss

    def _set_rates(self, step: int) -> float:
        rate = 0.0
        for part in self._named:
            settings = settings_of(self._training, self._stage, part)
            rate = learning_rate(
                settings.lr_scheduler,
                peak=settings.learning_rate,
                step=step,
                steps=self._stage.steps,
                warmup_steps=settings.warmup_steps,
            )
            self._optimizer.set_rate(part, rate)
        return rate

    @torch.no_grad()
    def _clip(self) -> float:
        """Shorten the gradients as `clip_grad_norm_` does; their norm before that."""
        gradients = [weight.grad for weight in self._all if weight.grad is not None]
        if not gradients:
            return 0.0
        if self.facts.loss_scale != 1:
            torch._foreach_div_(gradients, self.facts.loss_scale)
        norm = norm_of_all(torch._foreach_norm(gradients))
        share = self._training.max_grad_norm / (norm + 1e-6)
        if share < 1:
            torch._foreach_mul_(gradients, share)
        return float(norm)

    def _grow(self) -> None:
        if not self._scaled:
            return
        good = self.facts.good_updates + 1
        if good < GROW_AFTER:
            self.facts = Facts(self.facts.loss_scale, good)
            return
        self.facts = Facts(self.facts.loss_scale * 2, 0)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        if not self._average or self._training.ema is None:
            return
        # The average starts short and grows long, else it would hold on to the base for ages.
        decay = min(self._training.ema.decay, (1 + step) / (10 + step))
        kept = list(self._average.values())
        live = [self._named["denoiser"][name].detach() for name in self._average]
        if _alike(kept[0], live[0]):
            torch._foreach_lerp_(kept, live, 1 - decay)
            return
        for average, weight in zip(kept, live, strict=True):
            average.lerp_(weight.to(average.device, average.dtype), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights, if any, in place of the trained ones for a while."""
        held = self._exchange({})
        try:
            yield
        finally:
            self._exchange(held)

    @torch.no_grad()
    def _exchange(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Swap weights and averages in place; weights of less precision than their average are
        given back instead, to be put back later, since the average must not be rounded."""
        kept_back: dict[str, Tensor] = {}
        for name, average in self._average.items():
            weight = self._named["denoiser"][name]
            if name in held:
                weight.copy_(held[name])
                continue
            trained = weight.detach().clone()
            weight.copy_(average)
            if average.dtype == trained.dtype:
                average.copy_(trained)
            else:
                kept_back[name] = trained
        return kept_back

    def capture(self) -> dict[str, Tensor]:
        """The optimizer's state and the average by name, not copied."""
        averages = {f"ema/{name}": kept for name, kept in self._average.items()}
        return averages | self._optimizer.capture()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Facts, *, step: int) -> None:
        """Continue after `step` updates. Raises `DataError` when tensors do not fit."""
        self._optimizer.restore(tensors, step=step)
        for name, kept in self._average.items():
            saved = tensors.get(f"ema/{name}")
            if saved is None or saved.shape != kept.shape:
                raise DataError(f"checkpoint: the average of {name} is missing or does not fit")
            kept.copy_(saved)
        self.facts = facts


def _finite(loss: Tensor) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise ConfigurationError(f"the loss became {value}", reason="LossNotFinite")
    return value


def _not_finite() -> ConfigurationError:
    return ConfigurationError("the gradients are not finite", reason="LossNotFinite")


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A float32 copy to average in."""
    bytes_needed = sum(4 * weight.numel() for weight in weights.values())
    host = torch.device("cpu") if bytes_needed > LARGEST_AVERAGE else None
    return {
        name: weight.detach().to(host or weight.device, torch.float32, copy=True)
        for name, weight in weights.items()
    }


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype
