"""A loaded Stable Diffusion base: encodes, predicts, paints, and knows where its files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import clip, networks, unet, vae, writing
from kubebooth_trainer.families.door import (
    Conditioning,
    Geometry,
    LatentNormal,
    Painting,
    Part,
    Placement,
    PrecisionName,
    Sampling,
    Weighting,
)
from kubebooth_trainer.families.files import read_index, read_json
from kubebooth_trainer.families.shelf import Shelf


class SdModel:
    """See `families.door.Model`."""

    def __init__(
        self,
        folder: Path,
        *,
        placement: Placement,
        zero_terminal_snr: bool,
        trained: frozenset[Part],
    ) -> None:
        self._folder = folder
        self._placement = placement
        self._zero_terminal_snr = zero_terminal_snr
        _check(folder)
        networks.refuse_quantized(placement, family="Stable Diffusion")
        self._tokenizer = clip.load_tokenizer(folder)
        self._vae = Shelf(lambda: vae.load_vae(folder, device=placement.device))
        self._unet = unet.UNet(
            folder,
            placement=placement,
            dtype=networks.dtype_of("denoiser", placement, trained=trained),
            zero_terminal_snr=zero_terminal_snr,
        )
        self._text_encoder = clip.load_text_encoder(
            folder,
            dtype=networks.dtype_of("textEncoder", placement, trained=trained),
            device=placement.device,
        )

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""
        return {"textEncoder": self._text_encoder, "denoiser": self._unet.module}

    def timesteps(self, shares: Tensor, *, sampling: Sampling, size: tuple[int, int]) -> Tensor:
        """Whole timesteps, int64 [n]; the size of pictures does not matter here."""
        return self._unet.timesteps(shares, sampling=sampling)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `size` (height, width) in pixels."""
        return vae.latent_shape(self._vae, size)

    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        """The VAE's distribution for an RGB picture, in float32, on the CPU."""
        return vae.encode(self._vae, picture, device=self._placement.device)

    def latents(self, distribution: LatentNormal, noise: Tensor) -> Tensor:
        """Scaled latents: mean + std * noise, times the VAE's scaling factor."""
        return vae.scaled(self._vae, distribution.mean + distribution.std * noise)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """`text` [n, tokens, width]; carries gradients where they are enabled."""
        ids = clip.token_ids(self._tokenizer, prompts).to(self._placement.device)
        with networks.computing(self._placement):
            said: Tensor = self._text_encoder(ids)[0]
        return {"text": said.float()}

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
        """Loss of each sample, float32 [n]; geometry is of no use here."""
        return self._unet.losses(
            latents,
            noise=noise,
            timesteps=timesteps,
            text=conditioning["text"],
            weighting=weighting,
        )

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the parts on or off."""
        networks.recompute(self.parts.values(), on=on)

    def release(self) -> None:
        """Free what training does not read: the VAE. It comes back when it is used."""
        self._vae.release()

    @torch.no_grad()
    def paint(
        self, paintings: Sequence[Painting], *, inference_steps: int, guidance_scale: float
    ) -> list[Image.Image]:
        """Paint one batch of RGB pictures with the present weights."""
        prompts = unet.guided_prompts(paintings, guidance_scale=guidance_scale)
        once, places = unet.distinct(prompts)
        with unet.evaluating(self.parts.values()):
            latents = self._unet.sample(
                torch.stack([painting.noise for painting in paintings]),
                text=self.embed(once)["text"][places],
                guidance_scale=guidance_scale,
                inference_steps=inference_steps,
            )
        return [vae.decode(self._vae, one) for one in latents]

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""
        if part == "textEncoder":
            clip.reset_text_encoder(self._text_encoder, self._folder)
        else:
            self._unet.reset()

    def write(self, folder: Path, *, precision: PrecisionName) -> None:
        """Write the complete Diffusers layout into an empty folder."""
        writing.write_layout(
            self._folder,
            folder,
            trained={
                "text_encoder": clip.canonical(self._text_encoder.state_dict()),
                "unet": self._unet.module.state_dict(),
            },
            precision=precision,
            zero_terminal_snr=self._zero_terminal_snr,
        )


def load(
    folder: Path, *, placement: Placement, zero_terminal_snr: bool, trained: frozenset[Part]
) -> SdModel:
    """Open a Diffusers layout of Stable Diffusion. Raises `DataError`, and `ConfigurationError`
    for what the family cannot do."""
    return SdModel(
        folder, placement=placement, zero_terminal_snr=zero_terminal_snr, trained=trained
    )


def _check(folder: Path) -> None:
    read_index(folder, pipeline="StableDiffusionPipeline")
    reads = read_json(folder, "unet/config.json").get("cross_attention_dim")
    gives = read_json(folder, "text_encoder/config.json").get("hidden_size")
    if reads != gives:
        raise DataError(
            f"base model: unet/config.json reads text of width {reads!r}, text_encoder/config.json"
            f" gives {gives!r}: the components are not of one model"
        )
