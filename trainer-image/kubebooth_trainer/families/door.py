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
    """Where and in which precision a model computes and keeps its weights."""

    device: torch.device
    autocast: torch.dtype | None
    """Dtype of forward passes, if it is not that of the weights."""
    frozen: torch.dtype = torch.float32
    """Dtype in which weights that are not trained are kept; a VAE may need float32 all the same."""
    trained: torch.dtype = torch.float32
    """Dtype in which weights that are trained are kept."""
    quantized: Literal["None", "Int8", "Nf4", "Fp8"] = "None"
    """Form of the frozen denoiser under a low-rank update."""
    waiting: torch.device | None = None
    """Where the denoiser's weights are kept when they visit the device layer by layer."""


@dataclass(frozen=True)
class LatentNormal:
    """The normal distribution that the VAE gives for one picture, float32 [channels, h, w]."""

    mean: Tensor
    std: Tensor


Conditioning = Mapping[str, Tensor]
"""What the denoiser reads of prompts: tensors [n, …] by the family's own names, all of one n."""


@dataclass(frozen=True)
class Geometry:
    """How a training picture was cut out of the user's; heights and widths in pixels."""

    original: tuple[int, int]
    """(height, width) of the picture as it came."""
    crop: tuple[int, int]
    """(top, left) of the cut after resizing."""
    target: tuple[int, int]
    """(height, width) of the training picture."""


@dataclass(frozen=True)
class Weighting:
    """How losses are weighed and conditioned besides the batch itself."""

    min_snr_gamma: float | None = None
    guidance: float = 1.0
    """Guidance that is embedded; read by Flux only."""


Sampling = Literal["Auto", "Uniform", "LogitNormal", "FluxShift"]


@dataclass(frozen=True)
class Painting:
    """One picture to paint: prompts and the start noise, float32 [channels, h, w]."""

    prompt: str
    negative_prompt: str
    noise: Tensor


class Model(Protocol):
    """A loaded base model on one device."""

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""

    def timesteps(self, shares: Tensor, *, sampling: Sampling, size: tuple[int, int]) -> Tensor:
        """Timesteps [n] of evenly distributed shares [n], float64 in [0, 1), for pictures of
        `size` (height, width) in pixels: a monotone map, so that a grid of shares is a grid of
        timesteps. Their dtype and unit are the family's own."""

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `size` (height, width) in pixels."""

    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        """The VAE's distribution for an RGB picture, in float32, on the CPU."""

    def latents(self, distribution: LatentNormal, noise: Tensor) -> Tensor:
        """Scaled latents: mean + std * noise, times the VAE's scaling factor."""

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Text conditioning of n prompts; carries gradients where they are enabled."""

    def losses(
        self,
        latents: Tensor,
        *,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        geometry: Sequence[Geometry],
        weighting: Weighting,
    ) -> Tensor:
        """Loss of each sample, float32 [n]. `latents` and `noise` are [n, channels, h, w], scaled;
        `timesteps` come from the method of that name."""

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the parts on or off."""

    def release(self) -> None:
        """Free frozen components that updates do not read, such as the VAE. They come back from
        their files, with the bits they had, when something uses them."""

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

    def __call__(
        self,
        folder: Path,
        *,
        placement: Placement,
        zero_terminal_snr: bool,
        trained: frozenset[Part],
    ) -> Model:
        """Load every component. `trained` are the parts whose own weights will be trained; under
        a low-rank update there is none."""
