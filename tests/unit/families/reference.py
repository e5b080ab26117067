"""Diffusers' own pipeline beside our model, on the same files, batch and noise.

What a family's test adds is the formulation of diffusers' training example.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_trainer.families.door import Geometry, Model, Placement, Weighting
from kubebooth_trainer.train.refusals import FAMILIES
from PIL import Image
from torch import Tensor, nn

from tests.tiny.models import write_model

EDGE = 64
CPU = Placement(torch.device("cpu"), None)
PLAIN = Weighting()
BOTH = frozenset({"textEncoder", "denoiser"})
PROMPTS = ("a photo of a sks dog", "a cat, at night", "", "a dog")
TIMES = (0, 249, 731, 999)
GEOMETRY = (
    Geometry(original=(640, 480), crop=(12, 0), target=(EDGE, EDGE)),
    Geometry(original=(64, 64), crop=(0, 0), target=(EDGE, EDGE)),
    Geometry(original=(3000, 2000), crop=(0, 77), target=(EDGE, EDGE)),
    Geometry(original=(100, 400), crop=(3, 5), target=(EDGE, EDGE)),
)


@dataclass(frozen=True)
class SideBySide:
    """One base model, opened twice."""

    variant: str
    folder: Path
    pipe: Any
    """Diffusers' pipeline."""
    model: Model
    """Ours."""

    @property
    def text_encoder(self) -> nn.Module:
        """Theirs: the text encoder that is trained."""
        return self.pipe.text_encoder

    @property
    def denoiser(self) -> nn.Module:
        """Theirs."""
        return self.pipe.transformer if hasattr(self.pipe, "transformer") else self.pipe.unet


def side_by_side(folder: Path, variant: str, **load: Any) -> SideBySide:
    """Write the tiny model of a variant and open it with diffusers and with the family."""
    write_model(folder, variant)
    return opened(folder, variant, **load)


def opened(folder: Path, variant: str, **load: Any) -> SideBySide:
    """Open a layout with diffusers and with the family; both with gradients everywhere."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    model = FAMILIES[BASE_MODELS[variant].family](
        folder,
        **{"placement": CPU, "zero_terminal_snr": False, "trained": BOTH, **load},
    )
    both = SideBySide(variant, folder, pipe, model)
    for module in (both.text_encoder, both.denoiser, *model.parts.values()):
        module.requires_grad_(True)
        module.train()
    return both


def some(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(*, seed: int = 0) -> Image.Image:
    """Noisy coloured pixels."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (EDGE, EDGE, 3), dtype=np.uint8))


def our_losses(
    both: SideBySide,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    weighting: Weighting = PLAIN,
    learning_text: bool = True,
) -> Tensor:
    """Losses of the first prompts and geometries, [n]."""
    count = len(latents)
    with torch.set_grad_enabled(learning_text):
        conditioning = both.model.embed(PROMPTS[:count])
    return both.model.losses(
        latents,
        noise=noise,
        timesteps=timesteps,
        conditioning=conditioning,
        geometry=GEOMETRY[:count],
        weighting=weighting,
    )


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradient of each weight that the loss depends on, by name."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, share: float = 2e-5) -> None:
    """The same names, and values that differ by no more than rounding."""
    assert ours.keys() == theirs.keys()
    assert ours
    scale = max(float(t.abs().max()) for t in theirs.values())
    assert scale > 0
    for name, tensor in ours.items():
        difference = float((tensor - theirs[name]).abs().max())
        assert difference <= share * scale, (name, difference, scale)
