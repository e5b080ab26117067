"""What the training loop asks of a model family; the loop knows steps, the family the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

Part = Literal["textEncoder", "denoiser"]
PrecisionName = Literal["Keep", "Fp16", "Bf16", "Fp32"]


@dataclass(frozen=True)
class Placement:
    """Where a model computes: a device, and the autocast dtype of forward passes if any."""

    device: torch.device
    autocast: torch.dtype | None


@dataclass(frozen=True)
class LatentNormal:
    """The normal distribution that the VAE gives for one picture, float32 [channels, h, w]."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Painting:
    """One picture to paint: prompts and the start noise, float32 [channels, h, w]."""

    prompt: str
    negative_prompt: str
    noise: Tensor


class Model(Protocol):
    """A loaded base model: float32 weights on one device."""

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""

    @property
    def timesteps(self) -> int:
        """Length of the noise schedule."""

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a square picture of `resolution` pixels."""

    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        """The VAE's distribution for an RGB picture, in float32, on the CPU."""

    def latents(self, distribution: LatentNormal, noise: Tensor) -> Tensor:
        """Scaled latents: mean + std * noise, times the VAE's scaling factor."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Text conditioning [n, tokens, width]; carries gradients where they are enabled."""

    def losses(
        self,
        latents: Tensor,
        *,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Tensor,
        min_snr_gamma: float | None,
    ) -> Tensor:
        """Loss of each sample, float32 [n]."""

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""

    def training_bytes(self, parts: Sequence[Part], *, batch: int, resolution: int) -> int:
        """Estimated memory of one update without gradient checkpointing, in bytes."""

    def paint(
        self, paintings: Sequence[Painting], *, inference_steps: int, guidance_scale: float
    ) -> list[Image.Image]:
        """Paint one batch of RGB pictures with the present weights."""

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""

    def write(self, folder: Path, *, precision: PrecisionName) -> None:
        """Write the complete Diffusers layout into an empty folder."""


class Load(Protocol):
    """Opens a Diffusers layout. Raises `DataError` that names the file and what is wrong."""

    def __call__(self, folder: Path, *, placement: Placement, zero_terminal_snr: bool) -> Model:
        """Load every component in float32."""
