"""A loaded Flux base: encodes, predicts, paints, and knows where its files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from kubebooth_trainer.errors import ConfigurationError, DataError
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
from kubebooth_trainer.families.flux import flow
from kubebooth_trainer.families.flux.text import FIRST, SECOND, TextEncoders
from kubebooth_trainer.families.flux.transformer import Transformer
from kubebooth_trainer.families.shelf import Shelf

PIPELINE = "FluxPipeline"
SCHEDULER = "scheduler/scheduler_config.json"
WIDTHS = (
    ("joint_attention_dim", SECOND, "d_model"),
    ("pooled_projection_dim", FIRST, "hidden_size"),
)
"""Field of the transformer's config → component and field that must be as wide."""


class FluxModel:
    """See `families.door.Model`. Its part `textEncoder` is CLIP-L alone."""

    def __init__(self, folder: Path, *, placement: Placement, trained: frozenset[Part]) -> None:
        self._folder = folder
        self._placement = placement
        _check(folder)
        self._schedule = flow.schedule_of(read_json(folder, SCHEDULER), name=SCHEDULER)
        self._vae = Shelf(lambda: vae.load_vae(folder, device=placement.device))
        self._transformer = Transformer(
            folder,
            placement=placement,
            dtype=networks.dtype_of("denoiser", placement, trained=trained),
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
        return {"textEncoder": self._texts.first, "denoiser": self._transformer.module}

    def timesteps(self, shares: Tensor, *, sampling: Sampling, size: tuple[int, int]) -> Tensor:
        """Sigmas in (0, 1], float32 [n]; `Auto` and `FluxShift` look at the size of the picture."""
        _, height, width = self.latent_shape(size)
        return flow.sigmas_of(shares, sampling=sampling, tokens=flow.tokens_of(height, width))

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `size` (height, width) in pixels."""
        return vae.latent_shape(self._vae, size)

    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        """The VAE's distribution for an RGB picture, in float32, on the CPU."""
        return vae.encode(self._vae, picture, device=self._placement.device)

    def latents(self, distribution: LatentNormal, noise: Tensor) -> Tensor:
        """Scaled latents: mean + std * noise, less the VAE's shift, times its scaling factor."""
        return vae.scaled(self._vae, distribution.mean + distribution.std * noise)

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """`text` [n, tokens, width of T5] and `pooled` [n, width of CLIP-L]; carries gradients to
        CLIP-L where they are enabled."""
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
        """Loss of each sample, float32 [n]; geometry is of no use here."""
        noisy = flow.add_noise(latents, noise, timesteps)
        said = self._transformer.say(
            noisy,
            timesteps,
            text=conditioning["text"],
            pooled=conditioning["pooled"],
            guidance=weighting.guidance,
        )
        return (said - (noise - latents)).pow(2).mean(dim=(1, 2, 3))

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the parts on or off."""
        networks.recompute(self.parts.values(), on=on)

    def release(self) -> None:
        """Free what training does not read: the VAE and T5. They come back when used."""
        self._vae.release()
        self._texts.second.release()

    @torch.no_grad()
    def paint(
        self, paintings: Sequence[Painting], *, inference_steps: int, guidance_scale: float
    ) -> list[Image.Image]:
        """Paint one batch of RGB pictures with the present weights.

        Guidance is embedded, so there is no negative prompt: Euler's steps along the flow.
        """
        once, places = unet.distinct([painting.prompt for painting in paintings])
        with unet.evaluating(self.parts.values()):
            known = self.embed(once)
            latents = torch.stack([p.noise for p in paintings]).to(self._placement.device)
            sigmas = flow.sampling_sigmas(
                self._schedule,
                tokens=flow.tokens_of(latents.shape[-2], latents.shape[-1]),
                inference_steps=inference_steps,
            )
            for sigma, after in pairwise(sigmas):
                said = self._transformer.say(
                    latents,
                    torch.full((len(latents),), sigma, device=latents.device),
                    text=known["text"][places],
                    pooled=known["pooled"][places],
                    guidance=guidance_scale,
                )
                latents = latents + (after - sigma) * said
        return [vae.decode(self._vae, one) for one in latents]

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""
        if part == "textEncoder":
            self._texts.reset()
        else:
            self._transformer.reset()

    def write(self, folder: Path, *, precision: PrecisionName) -> None:
        """Write the complete Diffusers layout into an empty folder."""
        writing.write_layout(
            self._folder,
            folder,
            trained={
                FIRST: clip.canonical(self._texts.first.state_dict()),
                "transformer": self._transformer.tensors(),
            },
            precision=precision,
        )


def load(
    folder: Path, *, placement: Placement, zero_terminal_snr: bool, trained: frozenset[Part]
) -> FluxModel:
    """Open a Diffusers layout of Flux. Raises `DataError`, and `ConfigurationError` for what the
    family cannot do."""
    if zero_terminal_snr:
        raise ConfigurationError(
            "training.zeroTerminalSnr is for base models that predict v; Flux starts from pure"
            " noise anyway: turn it off"
        )
    if torch.float16 in (placement.autocast, placement.frozen, placement.trained):
        raise ConfigurationError(
            "training.mixedPrecision Fp16 overflows in Flux; use Auto, Bf16 or No"
        )
    return FluxModel(folder, placement=placement, trained=trained)


def _check(folder: Path) -> None:
    read_index(folder, pipeline=PIPELINE)
    config = read_json(folder, "transformer/config.json")
    for key, component, field in WIDTHS:
        wanted = config.get(key)
        found = read_json(folder, f"{component}/config.json").get(field)
        if type(wanted) is not int or wanted != found:
            raise DataError(
                f"base model: transformer/config.json has {key} {str(wanted)[:20]}, but"
                f" {component}/config.json has {field} {str(found)[:20]}; the components are not"
                " of one model"
            )
    channels = read_json(folder, "vae/config.json").get("latent_channels")
    if type(channels) is not int or config.get("in_channels") != 4 * channels:
        raise DataError(
            f"base model: transformer/config.json has in_channels"
            f" {str(config.get('in_channels'))[:20]}, but the VAE gives {str(channels)[:20]}"
            " channels, packed by four; the components are not of one model"
        )
