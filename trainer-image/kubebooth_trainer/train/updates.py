"""Optimizer, weight average and loss scale of one stage: all of a checkpoint but the position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from kubebooth_api.v1alpha1.training import Training
from torch import Tensor, nn

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.train.schedule import learning_rate
from kubebooth_trainer.train.stages import Part, Stage, settings_of

BETAS, EPSILON = (0.9, 0.999), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
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
        self, model: Model, stage: Stage, *, training: Training, placement: Placement
    ) -> None:
        self._stage, self._training = stage, training
        self._named: dict[Part, dict[str, nn.Parameter]] = {}
        for part, module in model.parts.items():
            module.requires_grad_(part in stage.parts)
            module.train(part in stage.parts)
            if part in stage.parts:
                self._named[part] = {
                    f"{part}.{name}": weight for name, weight in module.named_parameters()
                }
        self._optimizer = torch.optim.AdamW(
            [{"params": list(weights.values())} for weights in self._named.values()],
            lr=0.0,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=training.weight_decay,
        )
        self._scaled = placement.autocast == torch.float16
        self.facts = Facts(FIRST_SCALE if self._scaled else 1.0, 0)
        self._average: dict[str, Tensor] = {}
        if training.ema is not None and stage.name == "Denoiser":
            self._average = {
                name: weight.detach().clone() for name, weight in self._named["denoiser"].items()
            }

    def apply(self, step: int, backward: Callable[[float], Tensor]) -> tuple[float, float]:
        """Make update number `step` (from 0); its loss and the learning rate of the last part.

        `backward(scale)` computes the loss, leaves the gradients of loss * scale, and gives the
        loss. A step whose fp16 gradients overflow is done again at half the scale, so that step
        numbers count updates. Raises `ConfigurationError` when loss or gradients are not finite.
        """
        rate = self._set_rates(step)
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            loss = float(backward(self.facts.loss_scale))
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise ConfigurationError(f"the loss became {loss}", reason="LossNotFinite")
            norm = self._clip()
            if norm == norm and norm != float("inf"):
                break
            if not self._scaled or self.facts.loss_scale <= LOWEST_SCALE:
                raise ConfigurationError("the gradients are not finite", reason="LossNotFinite")
            self.facts = Facts(self.facts.loss_scale / 2, 0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._grow()
        self._follow(step)
        return loss, rate

    def _set_rates(self, step: int) -> float:
        rate = 0.0
        for group, part in zip(self._optimizer.param_groups, self._named, strict=True):
            settings = settings_of(self._training, self._stage, part)
            rate = learning_rate(
                settings.lr_scheduler,
                peak=settings.learning_rate,
                step=step,
                steps=self._stage.steps,
                warmup_steps=settings.warmup_steps,
            )
            group["lr"] = rate
        return rate

    def _clip(self) -> float:
        weights = [w for named in self._named.values() for w in named.values()]
        if self.facts.loss_scale != 1:
            for weight in weights:
                if weight.grad is not None:
                    weight.grad.div_(self.facts.loss_scale)
        return float(nn.utils.clip_grad_norm_(weights, self._training.max_grad_norm))

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
        for name, kept in self._average.items():
            kept.lerp_(self._named["denoiser"][name].detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights, if any, in place of the trained ones for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, kept in self._average.items():
            weight = self._named["denoiser"][name]
            held = weight.detach().clone()
            weight.copy_(kept)
            kept.copy_(held)

    def capture(self) -> dict[str, Tensor]:
        """The optimizer's moments and the average by name, not copied."""
        found = {f"ema/{name}": kept for name, kept in self._average.items()}
        for named in self._named.values():
            for name, weight in named.items():
                state = self._optimizer.state.get(weight, {})
                found |= {f"{m}/{name}": state[m] for m in MOMENTS if m in state}
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Facts, *, step: int) -> None:
        """Continue after `step` updates. Raises `DataError` when tensors do not fit."""
        for named in self._named.values():
            for name, weight in named.items():
                moments = {m: tensors[f"{m}/{name}"] for m in MOMENTS if f"{m}/{name}" in tensors}
                if not moments:
                    continue
                if len(moments) < len(MOMENTS) or any(
                    t.shape != weight.shape for t in moments.values()
                ):
                    raise DataError(f"checkpoint: the optimizer's state of {name} does not fit")
                self._optimizer.state[weight] = {
                    "step": torch.tensor(float(step)),
                    **{m: t.to(weight.device, torch.float32) for m, t in moments.items()},
                }
        for name, kept in self._average.items():
            if f"ema/{name}" in tensors:
                kept.copy_(tensors[f"ema/{name}"])
            else:
                raise DataError(f"checkpoint: the average of {name} is missing")
        self.facts = facts
