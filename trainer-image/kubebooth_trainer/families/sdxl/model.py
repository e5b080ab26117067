"""A loaded Stable Diffusion XL base: encodes, predicts, paints, and knows where its files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from kubebooth_trainer.families.sdxl.text import FIRST, SECOND, TextEncoders
from kubebooth_trainer.families.shelf import Shelf

PIPELINE = "StableDiffusionXLPipeline"
SIZES = 6
"""Numbers of a picture that the UNet is told: original size, place of the cut, target size."""


class SdxlModel:
    """See `families.door.Model`. Its part `textEncoder` is the first text encoder alone."""

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
        index = _checked_index(folder)
        networks.refuse_quantized(placement, family="Stable Diffusion XL")
        self._empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", True))
        self._vae = Shelf(lambda: vae.load_vae(folder, device=placement.device))
        self._unet = unet.UNet(
            folder,
            placement=placement,
            dtype=networks.dtype_of("denoiser", placement, trained=trained),
            zero_terminal_snr=zero_terminal_snr,
        )
        self._texts = TextEncoders(
            folder,
            first=networks.dtype_of("textEncoder", placement, trained=trained),
            second=placement.frozen,
            device=placement.device,
        )

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""
        return {"textEncoder": self._texts.first, "denoiser": self._unet.module}

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
        """`text` [n, tokens, both widths] and `pooled` [n, projection]; carries gradients to the
        first text encoder where they are enabled."""
        with networks.computing(self._placement):
            return self._texts.embed(prompts)

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
        """Loss of each sample, float32 [n]; every picture is told with its own geometry."""
        return self._unet.losses(
            latents,
            noise=noise,
            timesteps=timesteps,
            text=conditioning["text"],
            added={
                "text_embeds": conditioning["pooled"],
                "time_ids": time_ids(geometry).to(self._placement.device),
            },
            weighting=weighting,
        )

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the parts on or off."""
        networks.recompute(self.parts.values(), on=on)

    def release(self) -> None:
        """Free what training does not read: the VAE and the second text encoder. They come back
        when used."""
        self._vae.release()
        self._texts.second.release()

    @torch.no_grad()
    def paint(
        self, paintings: Sequence[Painting], *, inference_steps: int, guidance_scale: float
    ) -> list[Image.Image]:
        """Paint one batch of RGB pictures with the present weights, uncut and at their own size.

        An empty negative prompt is all zeros where the base says so, as in its training.
        """
        prompts = unet.guided_prompts(paintings, guidance_scale=guidance_scale)
        noise = torch.stack([painting.noise for painting in paintings])
        factor = vae.edge_factor(self._vae)
        size = noise.shape[-2] * factor, noise.shape[-1] * factor
        whole = time_ids([Geometry(original=size, crop=(0, 0), target=size)] * len(prompts))
        with unet.evaluating(self.parts.values()):
            text, pooled = self._conditioning(prompts, negatives=len(prompts) - len(paintings))
            latents = self._unet.sample(
                noise,
                text=text,
                added={"text_embeds": pooled, "time_ids": whole.to(self._placement.device)},
                guidance_scale=guidance_scale,
                inference_steps=inference_steps,
            )
        return [vae.decode(self._vae, one) for one in latents]

    def _conditioning(self, prompts: Sequence[str], *, negatives: int) -> tuple[Tensor, Tensor]:
        once, places = unet.distinct(prompts)
        known = self.embed(once)
        text, pooled = known["text"][places], known["pooled"][places]
        for place in range(negatives):
            if self._empty_is_zero and not prompts[place]:
                text[place], pooled[place] = 0.0, 0.0
        return text, pooled

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""
        if part == "textEncoder":
            self._texts.reset()
        else:
            self._unet.reset()

    def write(self, folder: Path, *, precision: PrecisionName) -> None:
        """Write the complete Diffusers layout into an empty folder."""
        writing.write_layout(
            self._folder,
            folder,
            trained={
                FIRST: clip.canonical(self._texts.first.state_dict()),
                "unet": self._unet.module.state_dict(),
            },
            precision=precision,
            zero_terminal_snr=self._zero_terminal_snr,
        )


def time_ids(geometry: Sequence[Geometry]) -> Tensor:
    """What the UNet is told of each picture, float32 [n, 6]: original height and width, top and
    left of the cut, target height and width."""
    rows = [(*one.original, *one.crop, *one.target) for one in geometry]
    return torch.tensor(rows, dtype=torch.float32)


def load(
    folder: Path, *, placement: Placement, zero_terminal_snr: bool, trained: frozenset[Part]
) -> SdxlModel:
    """Open a Diffusers layout of Stable Diffusion XL. Raises `DataError`, and `ConfigurationError`
    for what the family cannot do."""
    return SdxlModel(
        folder, placement=placement, zero_terminal_snr=zero_terminal_snr, trained=trained
    )


def _checked_index(folder: Path) -> dict[str, object]:
    index = read_index(folder, pipeline=PIPELINE)
    config = read_json(folder, "unet/config.json")
    first, second = (read_json(folder, f"{name}/config.json") for name in (FIRST, SECOND))
    widths: list[Any] = [
        first.get("hidden_size"),
        second.get("hidden_size"),
        second.get("projection_dim"),
    ]
    sizes: Any = config.get("addition_time_embed_dim")
    if not all(type(number) is int for number in (*widths, sizes)) or (
        config.get("cross_attention_dim"),
        config.get("projection_class_embeddings_input_dim"),
    ) != (widths[0] + widths[1], SIZES * sizes + widths[2]):
        raise DataError(
            "base model: unet/config.json reads text of width"
            f" {config.get('cross_attention_dim')!r} and a projection, text_encoder/ and"
            f" text_encoder_2/ give {widths[0]!r}, {widths[1]!r} and {widths[2]!r}: the components"
            " are not of one SDXL base model (a refiner cannot be trained)"
        )
    return index
