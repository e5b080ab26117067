"""The VAE of every family: pictures to latent distributions and back, always in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import networks
from kubebooth_trainer.families.door import LatentNormal

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in files of Stable Diffusion 1.x → today's names."""


def load_vae(folder: Path, *, device: torch.device) -> Any:
    """The frozen VAE in float32: in fp16 those of SDXL and Flux overflow. Raises `DataError`."""
    vae = networks.load_network(
        folder, "vae", AutoencoderKL, dtype=torch.float32, device=device, rename=_today
    )
    if getattr(vae.config, "latents_mean", None) is not None:
        raise DataError(
            "base model: vae/config.json has latents_mean, a normalisation that no variant here"
            " was trained with; choose another base model"
        )
    return vae.eval().requires_grad_(False)


def _today(key: str) -> str:
    parts = key.split(".")
    if "attentions" not in parts or len(parts) < 2:
        return key
    return ".".join([*parts[:-2], OLD_ATTENTION.get(parts[-2], parts[-2]), parts[-1]])


def edge_factor(vae: Any) -> int:
    """Pixels along one edge of a latent pixel."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def latent_shape(vae: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    """[channels, h, w] of the latents of a picture of `size` (height, width) in pixels."""
    factor = edge_factor(vae)
    return int(vae.config.latent_channels), size[0] // factor, size[1] // factor


@torch.no_grad()
def encode(vae: Any, picture: Image.Image, *, device: torch.device) -> LatentNormal:
    """The distribution for an RGB picture, unscaled, in float32, on the CPU."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 127.5 - 1
    batch = pixels.permute(2, 0, 1).unsqueeze(0).contiguous().to(device)
    found = vae.encode(batch).latent_dist
    return LatentNormal(found.mean[0].float().cpu(), found.std[0].float().cpu())


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE gives them → as the denoiser knows them: (z - shift) * scale."""
    shift = getattr(vae.config, "shift_factor", None)
    centred = latents if shift is None else latents - float(shift)
    return centred * float(vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Image.Image:
    """One RGB picture of scaled latents [channels, h, w]."""
    shift = getattr(vae.config, "shift_factor", None)
    plain = latents.float().unsqueeze(0) / vae.config.scaling_factor
    plain = plain if shift is None else plain + float(shift)
    pixels = vae.decode(plain, return_dict=False)[0][0]
    levels = ((pixels + 1) * 127.5).round().nan_to_num(0).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))
