"""The transformer of Flux: latents in, what it says about them out, in the precision asked for.

It must not know text encoders or schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families import networks
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.families.files import weight_files
from kubebooth_trainer.families.flux import flow
from kubebooth_trainer.families.flux.quantized import quantize


class Transformer:
    """See the module."""

    def __init__(self, folder: Path, *, placement: Placement, dtype: torch.dtype) -> None:
        self._folder, self._placement, self._dtype = folder, placement, dtype
        form = placement.quantized
        # A quantized base is too large for the device before it is quantized.
        host = torch.device("cpu") if form != "None" else placement.waiting
        self.module: Any = networks.load_network(
            folder,
            "transformer",
            FluxTransformer2DModel,
            dtype=dtype,
            device=host or placement.device,
        )
        if form == "Fp8":
            raise ConfigurationError(
                "training.memory.quantizedBase Fp8 is not in this version; use Int8 or Nf4"
            )
        if form != "None":
            quantize(self.module, form, dtype=dtype, device=placement.device)

    def say(
        self, noisy: Tensor, sigmas: Tensor, *, text: Tensor, pooled: Tensor, guidance: float
    ) -> Tensor:
        """noise - x_0 as the network has it, float32 [n, channels, h, w].

        `sigmas` [n] are float32, `text` [n, tokens, width], `pooled` [n, width].
        """
        _, _, height, width = noisy.shape
        device = noisy.device
        embedded = None
        if self.module.config.guidance_embeds:
            embedded = torch.full((len(noisy),), guidance, dtype=torch.float32, device=device)
        with networks.computing(self._placement):
            said: Tensor = self.module(
                hidden_states=flow.packed(noisy).to(self._dtype),
                timestep=sigmas,
                guidance=embedded,
                pooled_projections=pooled.to(self._dtype),
                encoder_hidden_states=text.to(self._dtype),
                txt_ids=torch.zeros((text.shape[1], 3), device=device),
                img_ids=flow.place_ids(height, width, device=device),
                return_dict=False,
            )[0]
        return flow.unpacked(said.float(), height=height, width=width)

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights under the names of a file."""
        found: Mapping[str, Tensor] = self.module.state_dict()
        return found

    def reset(self) -> None:
        """Put the weights of the files back; quantized ones never change."""
        if self._placement.quantized != "None":
            return
        networks.refill(self.module, weight_files(self._folder, "transformer"))
