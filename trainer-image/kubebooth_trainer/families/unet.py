"""A UNet that denoises under a diffusion schedule: its losses and its pictures.

It must not know text encoders; conditioning comes as tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kubebooth_trainer.families import diffusion, networks, solver
from kubebooth_trainer.families.door import Painting, Placement, Sampling, Weighting
from kubebooth_trainer.families.drawing import discrete, logit_normal
from kubebooth_trainer.families.files import read_json, weight_files

Added = Mapping[str, Tensor] | None
"""Conditioning besides text, by the names of diffusers' `added_cond_kwargs`, each [n, …]."""
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"


class UNet:
    """The network, its noise schedule, and the precision both compute in."""

    def __init__(
        self, folder: Path, *, placement: Placement, dtype: torch.dtype, zero_terminal_snr: bool
    ) -> None:
        config = read_json(folder, SCHEDULER_CONFIG)
        self.kind = diffusion.prediction_of(config, zero_terminal_snr=zero_terminal_snr)
        self.products = diffusion.alphas_cumprod(config, zero_terminal_snr=zero_terminal_snr).to(
            placement.device
        )
        self.module: Any = networks.load_network(
            folder,
            "unet",
            UNet2DConditionModel,
            dtype=dtype,
            device=placement.waiting or placement.device,
        )
        self._folder, self._placement, self._dtype = folder, placement, dtype

    def timesteps(self, shares: Tensor, *, sampling: Sampling) -> Tensor:
        """Whole timesteps of the schedule, int64 [n], for shares [n] in [0, 1)."""
        drawn = logit_normal(shares) if sampling == "LogitNormal" else shares
        return discrete(drawn, count=len(self.products))

    def losses(
        self,
        latents: Tensor,
        *,
        noise: Tensor,
        timesteps: Tensor,
        text: Tensor,
        added: Added = None,
        weighting: Weighting,
    ) -> Tensor:
        """Loss of each sample, float32 [n], of scaled latents and noise [n, channels, h, w]."""
        products = self.products[timesteps]
        noisy = diffusion.add_noise(latents, noise, products)
        said = self._say(noisy, timesteps, text, added)
        weights = None
        if weighting.min_snr_gamma is not None:
            gamma = weighting.min_snr_gamma
            weights = diffusion.min_snr_weights(self.kind, products, gamma=gamma)
        wanted = diffusion.target(self.kind, latents, noise, products)
        return diffusion.losses(said, wanted, weights)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        *,
        text: Tensor,
        added: Added = None,
        guidance_scale: float,
        inference_steps: int,
    ) -> Tensor:
        """Scaled latents [n, channels, h, w] of start noise under classifier-free guidance.

        Conditioning is that of n pictures, or of n without and then n with the prompt.
        """
        guided = len(text) > len(noise)

        def predict(latents: Tensor, timestep: int) -> Tensor:
            doubled = torch.cat([latents, latents]) if guided else latents
            said = self._say(doubled, timestep, text, added).float()
            if not guided:
                return said
            without, given = said.chunk(2)
            return without + guidance_scale * (given - without)

        return solver.sample(
            predict,
            noise.to(self._placement.device),
            products=self.products,
            kind=self.kind,
            inference_steps=inference_steps,
        )

    def _say(self, noisy: Tensor, timesteps: Tensor | int, text: Tensor, added: Added) -> Tensor:
        # Sizes of pictures stay float32: bfloat16 cannot tell 3000 from 3001.
        extra = {} if added is None else {"added_cond_kwargs": dict(added)}
        with networks.computing(self._placement):
            said: Tensor = self.module(
                noisy.to(self._dtype), timesteps, text.to(self._dtype), return_dict=False, **extra
            )[0]
        return said

    def reset(self) -> None:
        """Put the weights of the files back."""
        networks.refill(self.module, weight_files(self._folder, "unet"))


def guided_prompts(paintings: Sequence[Painting], *, guidance_scale: float) -> list[str]:
    """Negative prompts and then prompts, or prompts alone where guidance does nothing."""
    prompts = [painting.prompt for painting in paintings]
    if guidance_scale <= 1:
        return prompts
    return [painting.negative_prompt for painting in paintings] + prompts


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each prompt once, and the place of every given one among them."""
    once = list(dict.fromkeys(prompts))
    return once, [once.index(prompt) for prompt in prompts]


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Out of training mode for a while: no dropout."""
    learning = [module for module in modules if module.training]
    for module in learning:
        module.eval()
    try:
        yield
    finally:
        for module in learning:
            module.train()
