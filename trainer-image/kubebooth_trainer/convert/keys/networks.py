"""One way to ask each kind of network for its table: from a config, or from names with shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kubebooth_trainer.convert.keys import clip, controlnet, flux, openclip, t5, unet, vae
from kubebooth_trainer.convert.keys.links import Link
from kubebooth_trainer.convert.keys.sizes import Config, Found


@dataclass(frozen=True)
class Network:
    """A kind of network. `sizes` below are those of its own module."""

    class_name: str
    library: str
    stem: str
    """Stem of the weight file in the Diffusers layout."""
    from_config: Callable[[Config], Any]
    from_single: Callable[[Found], Any]
    links: Callable[[Any], list[Link]]
    canonical: Callable[[str], str] = field(default=lambda name: name)
    """Name as found in a Diffusers layout → name as written there."""
    canonical_single: Callable[[str], str] = field(default=lambda name: name)
    """The same for a single file, without prefix."""
    unread: tuple[str, ...] = ()
    """Names in a Diffusers layout, canonical, that no reader needs."""


_MODEL, _DIFFUSION = "model", "diffusion_pytorch_model"

UNET = Network("UNet2DConditionModel", "diffusers", _DIFFUSION,
               unet.from_config, unet.from_single, unet.links)  # fmt: skip
VAE = Network("AutoencoderKL", "diffusers", _DIFFUSION,
              vae.from_config, vae.from_single, vae.links, vae.modern)  # fmt: skip
CONTROLNET = Network("ControlNetModel", "diffusers", _DIFFUSION,
                     controlnet.from_config, controlnet.from_single, controlnet.links)  # fmt: skip
TRANSFORMER = Network("FluxTransformer2DModel", "diffusers", _DIFFUSION,
                      flux.from_config, flux.from_single, flux.links)  # fmt: skip
CLIP = Network("CLIPTextModel", "transformers", _MODEL,
               clip.from_config, clip.from_single, clip.links,
               clip.prefixed, clip.prefixed, (*clip.BUFFERS, "text_projection.weight"))  # fmt: skip
OPENCLIP = Network("CLIPTextModel", "transformers", _MODEL,
                   clip.from_config, lambda found: openclip.from_single(found, projection=False),
                   openclip.links, clip.prefixed,
                   unread=(*clip.BUFFERS, "text_projection.weight"))  # fmt: skip
OPENCLIP_PROJECTED = Network(
    "CLIPTextModelWithProjection", "transformers", _MODEL,
    lambda config: clip.from_config(config, projection=True),
    lambda found: openclip.from_single(found, projection=True),
    openclip.links, clip.prefixed, unread=clip.BUFFERS)  # fmt: skip
T5 = Network("T5EncoderModel", "transformers", _MODEL,
             t5.from_config, t5.from_single, t5.links, unread=(t5.TIED,))  # fmt: skip
