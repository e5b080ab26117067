"""A loaded Stable Diffusion base: encodes, predicts, paints, and knows where its files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from kubebooth_trainer.errors import DataError
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
from kubebooth_trainer.families.drawing import discrete, logit_normal
from kubebooth_trainer.families.sd import files, objective, sampler, save, text

CLASS_NAMES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the VAE's attention layers in files of Stable Diffusion 1.x → today's names."""
ACTIVATION_BYTES = 4200
"""Activation memory of one UNet update per latent pixel and channel of its first level, in bytes:
about 5.5 GB for Stable Diffusion 1.5 at 512 px. An estimate, see `SdModel.training_bytes`."""


class SdModel:
    """See `families.door.Model`."""

    def __init__(self, folder: Path, *, placement: Placement, zero_terminal_snr: bool) -> None:
        self._folder = folder
        self._placement = placement
        self._zero_terminal_snr = zero_terminal_snr
        index = files.read_json(folder, files.MODEL_INDEX)
        if index.get("_class_name") != "StableDiffusionPipeline":
            raise DataError(
                f"base model: {files.MODEL_INDEX} names {index.get('_class_name')!r}; this variant"
                " needs a StableDiffusionPipeline"
            )
        self._scheduler = files.read_json(folder, "scheduler/scheduler_config.json")
        self._kind = objective.prediction_of(self._scheduler, zero_terminal_snr=zero_terminal_snr)
        self._products = objective.alphas_cumprod(
            self._scheduler, zero_terminal_snr=zero_terminal_snr
        ).to(placement.device)
        self._tokenizer = text.load_tokenizer(folder)
        self._vae = _network(folder, "vae").to(placement.device).eval().requires_grad_(False)
        self._unet = _network(folder, "unet").to(placement.device)
        self._text_encoder = text.load_text_encoder(
            folder, files.read_weights(folder, "text_encoder")
        ).to(placement.device)
        text_config = files.read_json(folder, "text_encoder/config.json")
        if self._unet.config.cross_attention_dim != text_config.get("hidden_size"):
            raise DataError(
                "base model: the UNet's cross_attention_dim and the text encoder's hidden_size"
                " differ; the components are not of one model"
            )

    @property
    def parts(self) -> Mapping[Part, nn.Module]:
        """What can be trained."""
        return {"textEncoder": self._text_encoder, "denoiser": self._unet}

    def timesteps(self, shares: Tensor, *, sampling: Sampling, size: tuple[int, int]) -> Tensor:
        """Whole timesteps, int64 [n]; the size of pictures does not matter here."""
        drawn = logit_normal(shares) if sampling == "LogitNormal" else shares
        return discrete(drawn, count=len(self._products))

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `size` (height, width) in pixels."""
        scale = 2 ** (len(self._vae.config.block_out_channels) - 1)
        return int(self._vae.config.latent_channels), size[0] // scale, size[1] // scale

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> LatentNormal:
        """The VAE's distribution for an RGB picture, in float32, on the CPU."""
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 127.5 - 1
        batch = pixels.permute(2, 0, 1).unsqueeze(0).contiguous().to(self._placement.device)
        found = self._vae.encode(batch).latent_dist
        return LatentNormal(found.mean[0].float().cpu(), found.std[0].float().cpu())

    def latents(self, distribution: LatentNormal, noise: Tensor) -> Tensor:
        """Scaled latents: mean + std * noise, times the VAE's scaling factor."""
        factor = float(self._vae.config.scaling_factor)
        return (distribution.mean + distribution.std * noise) * factor

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """`text` [n, tokens, width]; carries gradients where they are enabled."""
        ids = text.token_ids(self._tokenizer, prompts).to(self._placement.device)
        with self._autocast():
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
        products = self._products[timesteps]
        noisy = objective.add_noise(latents, noise, products)
        with self._autocast():
            said = self._unet(noisy, timesteps, conditioning["text"], return_dict=False)[0]
        weights = (
            objective.min_snr_weights(self._kind, products, gamma=weighting.min_snr_gamma)
            if weighting.min_snr_gamma is not None
            else None
        )
        wanted = objective.target(self._kind, latents, noise, products)
        return objective.losses(said, wanted, weights)

    def save_memory(self, on: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""
        if on:
            self._unet.enable_gradient_checkpointing()
        else:
            self._unet.disable_gradient_checkpointing()

    def training_bytes(self, parts: Sequence[Part], *, batch: int, size: tuple[int, int]) -> int:
        """Estimated memory of one update without gradient checkpointing, in bytes.

        Weights of everything, gradients and two Adam moments of what is trained, activations.
        """
        modules = (self._unet, self._text_encoder, self._vae)
        weights = 4 * sum(p.numel() for module in modules for p in module.parameters())
        trained = 12 * sum(p.numel() for part in parts for p in self.parts[part].parameters())
        _, height, across = self.latent_shape(size)
        width = int(self._unet.config.block_out_channels[0])
        return weights + trained + ACTIVATION_BYTES * width * height * across * batch

    @torch.no_grad()
    def paint(
        self, paintings: Sequence[Painting], *, inference_steps: int, guidance_scale: float
    ) -> list[Image.Image]:
        """Paint one batch of RGB pictures with the present weights."""
        learning = [module for module in self.parts.values() if module.training]
        for module in learning:
            module.eval()
        noise = torch.stack([painting.noise for painting in paintings])
        latents = sampler.sample(
            self._guided(paintings, guidance_scale=guidance_scale),
            noise.to(self._placement.device),
            products=self._products,
            kind=self._kind,
            inference_steps=inference_steps,
        )
        for module in learning:
            module.train()
        return [self._decode(one) for one in latents]

    def reset(self, part: Part) -> None:
        """Put the base weights of a part back."""
        module = self.parts[part]
        name = save.COMPONENTS[part]
        tensors = files.read_weights(self._folder, name).tensors
        if part == "textEncoder":
            tensors = text.fitted(tensors, set(module.state_dict()))
        with torch.no_grad():
            for key, value in module.state_dict().items():
                value.copy_(tensors[key])

    def write(self, folder: Path, *, precision: PrecisionName) -> None:
        """Write the complete Diffusers layout into an empty folder."""
        save.write_layout(
            self._folder,
            folder,
            trained={part: module.state_dict() for part, module in self.parts.items()},
            precision=precision,
            zero_terminal_snr=self._zero_terminal_snr,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._placement.autocast is None:
            return nullcontext()
        return torch.autocast(self._placement.device.type, dtype=self._placement.autocast)

    def _guided(self, paintings: Sequence[Painting], *, guidance_scale: float) -> sampler.Predict:
        """The denoiser's word under classifier-free guidance."""
        prompts = [painting.prompt for painting in paintings]
        guided = guidance_scale > 1
        if guided:
            prompts = [painting.negative_prompt for painting in paintings] + prompts
        distinct = list(dict.fromkeys(prompts))
        places = [distinct.index(prompt) for prompt in prompts]
        conditioning = self.embed(distinct)["text"][places]

        def predict(latents: Tensor, timestep: int) -> Tensor:
            doubled = torch.cat([latents, latents]) if guided else latents
            with self._autocast():
                said = self._unet(doubled, timestep, conditioning, return_dict=False)[0].float()
            if not guided:
                return said  # type: ignore[no-any-return]
            without, given = said.chunk(2)
            return without + guidance_scale * (given - without)  # type: ignore[no-any-return]

        return predict

    def _decode(self, latents: Tensor) -> Image.Image:
        """One RGB picture of latents [channels, h, w], decoded in float32."""
        scaled = latents.unsqueeze(0) / self._vae.config.scaling_factor
        pixels = self._vae.decode(scaled, return_dict=False)[0][0]
        levels = ((pixels + 1) * 127.5).round().nan_to_num(0).clamp(0, 255).to(torch.uint8)
        return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))


def load(
    folder: Path, *, placement: Placement, zero_terminal_snr: bool, trained: frozenset[Part]
) -> SdModel:
    """Open a Diffusers layout of Stable Diffusion in float32. Raises `DataError`."""
    return SdModel(folder, placement=placement, zero_terminal_snr=zero_terminal_snr)


def _network(folder: Path, component: str) -> Any:
    """A UNet or VAE in float32 without first filling it at random."""
    config = files.read_json(folder, f"{component}/config.json")
    weights = files.read_weights(folder, component)
    tensors = {_today(key): t.float() for key, t in weights.tensors.items()}
    try:
        with torch.device("meta"):
            network = CLASS_NAMES[component].from_config(config)
        network.load_state_dict(tensors, strict=True, assign=True)
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"base model: {component}/ does not hold the weights its config.json describes"
            f" ({str(error)[:300]})"
        ) from error
    return network


def _today(key: str) -> str:
    parts = key.split(".")
    if "attentions" not in parts or len(parts) < 2:
        return key
    return ".".join([*parts[:-2], OLD_VAE_ATTENTION.get(parts[-2], parts[-2]), parts[-1]])
