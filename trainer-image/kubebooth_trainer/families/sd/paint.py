"""Sampling with the diffusers pipeline: start noise in, pictures out; no random draw inside."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from kubebooth_trainer.families.door import Painting


def sampler(config: Mapping[str, Any], *, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ (second order, deterministic) on the base model's own noise schedule."""
    known = inspect.signature(DPMSolverMultistepScheduler.__init__).parameters
    kept = {key: value for key, value in config.items() if key in known}
    if zero_terminal_snr:
        kept |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DPMSolverMultistepScheduler(**kept)


def pipeline(components: dict[str, Any]) -> Any:
    """A pipeline around components at hand, without safety checker and progress bar."""
    pipe = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint_latents(
    pipe: Any,
    paintings: Sequence[Painting],
    *,
    device: torch.device,
    inference_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Latents [n, channels, h, w] of one batch of paintings."""
    noise = torch.stack([painting.noise for painting in paintings]).to(device)
    factor = pipe.vae_scale_factor
    latents: Tensor = pipe(
        [painting.prompt for painting in paintings],
        negative_prompt=[painting.negative_prompt for painting in paintings],
        height=noise.shape[2] * factor,
        width=noise.shape[3] * factor,
        num_inference_steps=inference_steps,
        guidance_scale=guidance_scale,
        latents=noise,
        output_type="latent",
    ).images
    return latents.float()


def decode(vae: Any, latents: Tensor) -> Image.Image:
    """One RGB picture of latents [channels, h, w], decoded in float32."""
    scaled = latents.unsqueeze(0) / vae.config.scaling_factor
    pixels = vae.decode(scaled, return_dict=False)[0][0]
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).nan_to_num(0).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))
