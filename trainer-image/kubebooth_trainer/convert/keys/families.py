"""Which networks a family is made of, and where each stands in both layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kubebooth_trainer.convert.keys import networks
from kubebooth_trainer.convert.keys.networks import Network

Role = Literal["Denoiser", "TextEncoder", "Vae", "ControlNet"]
Layout = Literal["sd1", "sd2", "sdxl", "flux"]


@dataclass(frozen=True)
class Component:
    """A network's place in a family."""

    folder: str
    """Folder in the Diffusers layout."""
    role: Role
    network: Network
    prefixes: tuple[str, ...]
    """Prefixes in a single file; the first is written."""


@dataclass(frozen=True)
class Family:
    """A layout of names; `sd` of the catalogue has two."""

    layout: Layout
    name: Literal["sd", "sdxl", "flux"]
    """Family in the catalogue."""
    title: str
    pipeline: str
    components: tuple[Component, ...]

    def component(self, folder: str) -> Component | None:
        """The component of that folder, if the family has it."""
        return next((c for c in self.components if c.folder == folder), None)

    @property
    def denoiser(self) -> Component:
        """UNet or transformer."""
        return next(c for c in self.components if c.role == "Denoiser")

    @property
    def vae(self) -> Component:
        """The autoencoder."""
        return next(c for c in self.components if c.role == "Vae")


_DENOISER = "model.diffusion_model."
_UNET = Component("unet", "Denoiser", networks.UNET, (_DENOISER,))
_VAE = Component("vae", "Vae", networks.VAE, ("first_stage_model.",))


def _text(folder: str, network: Network, *prefixes: str) -> Component:
    return Component(folder, "TextEncoder", network, prefixes)


FAMILIES: Mapping[Layout, Family] = {
    "sd1": Family(
        "sd1", "sd", "Stable Diffusion 1.x", "StableDiffusionPipeline",
        (
            _UNET,
            _text("text_encoder", networks.CLIP, "cond_stage_model.transformer."),
            _VAE,
        ),
    ),
    "sd2": Family(
        "sd2", "sd", "Stable Diffusion 2.x", "StableDiffusionPipeline",
        (
            _UNET,
            _text("text_encoder", networks.OPENCLIP, "cond_stage_model.model."),
            _VAE,
        ),
    ),
    "sdxl": Family(
        "sdxl", "sdxl", "Stable Diffusion XL", "StableDiffusionXLPipeline",
        (
            _UNET,
            _text("text_encoder", networks.CLIP, "conditioner.embedders.0.transformer."),
            _text("text_encoder_2", networks.OPENCLIP_PROJECTED, "conditioner.embedders.1.model."),
            _VAE,
        ),
    ),
    "flux": Family(
        "flux", "flux", "Flux.1", "FluxPipeline",
        (
            Component("transformer", "Denoiser", networks.TRANSFORMER, (_DENOISER,)),
            _text("text_encoder", networks.CLIP, "text_encoders.clip_l.transformer."),
            _text("text_encoder_2", networks.T5, "text_encoders.t5xxl.transformer."),
            Component("vae", "Vae", networks.VAE, ("vae.", "first_stage_model.")),
        ),
    ),
}  # fmt: skip

CONTROLNET = Component("", "ControlNet", networks.CONTROLNET, ("control_model.",))
"""A ControlNet on its own; its family shows in the width of its text."""

MARKERS = ("v_pred", "ztsnr")
"""Empty tensors by which user interfaces know v-prediction, and zero terminal SNR, of SDXL."""

_ASIDE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r"model_ema\.", "averaged weights"),
        (r"(v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.sigma_(max|min))$", "marker of prediction"),
        (r"(.+\.)?position_ids$", "a counter that every reader makes anew"),
        (r"(.+\.)?logit_scale$", "scale of CLIP's training, read by nobody here"),
        (r"cond_stage_model\..*text_projection(\.weight)?$", "projection that SD does not read"),
        (r"cond_stage_model\.model\.attn_mask$", "a mask that every reader makes anew"),
        (r"cond_stage_model\.model\.transformer\.resblocks\.\d+\.", "layer after the one read"),
        (r"conditioner\.embedders\.\d\..*attn_mask$", "a mask that every reader makes anew"),
        (
            r"(conditioner\.embedders\.0|text_encoders\.clip_l)\.transformer\."
            r"text_projection(\.weight)?$",
            "projection that this family does not read",
        ),
        (r"(first_stage_model\.|vae\.)?loss\.", "the autoencoder's training loss"),
        (r"(.+\.)?encoder\.embed_tokens\.weight$", "a second name of shared.weight"),
        (
            r"((sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|betas|logvar"
            r"|sqrt_recip(m1)?_alphas_cumprod|posterior_(variance|log_variance_clipped"
            r"|mean_coef[12])|lvlb_weights|scale_factor|denoiser\.sigmas|global_step|epoch)$",
            "schedule or counter that every reader makes anew",
        ),
    )
)


def aside(name: str) -> str | None:
    """Why a tensor of a single file has no place in the Diffusers layout, or None if it is not
    one of those that are known."""
    return next((why for pattern, why in _ASIDE if pattern.match(name)), None)


def averaged(single: str) -> str:
    """Name that the training code of Stable Diffusion gives to a denoiser's averaged tensor."""
    return "model_ema.diffusion_model" + single.replace(".", "")
