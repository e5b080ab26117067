"""The two text encoders of SDXL: what both read before their last layer, and one's projection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kubebooth_trainer.families import clip
from kubebooth_trainer.families.door import Conditioning
from kubebooth_trainer.families.shelf import Shelf

FIRST, SECOND = "text_encoder", "text_encoder_2"


class TextEncoders:
    """CLIP-L and OpenCLIP bigG; the second is never trained, it learns badly from few pictures."""

    def __init__(
        self,
        folder: Path,
        *,
        first: torch.dtype,
        second: torch.dtype,
        device: torch.device,
    ) -> None:
        self._folder, self._device = folder, device
        self._tokenizers = (
            clip.load_tokenizer(folder, "tokenizer"),
            clip.load_tokenizer(folder, "tokenizer_2"),
        )
        self.first: nn.Module = clip.load_text_encoder(folder, FIRST, dtype=first, device=device)
        self.second = Shelf(lambda: _load_second(folder, dtype=second, device=device))

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """`text` [n, tokens, both widths] and `pooled` [n, projection], float32.

        Text is the hidden states before the last layer, without the final norm, side by side.
        """
        own, other = (
            clip.token_ids(tokenizer, prompts).to(self._device) for tokenizer in self._tokenizers
        )
        one = self.first(own, output_hidden_states=True)
        two = self.second(other, output_hidden_states=True)
        text = torch.cat([one.hidden_states[-2].float(), two.hidden_states[-2].float()], dim=-1)
        pooled: Tensor = two.text_embeds.float()
        return {"text": text, "pooled": pooled}

    def reset(self) -> None:
        """Put the base weights of the first one back."""
        clip.reset_text_encoder(self.first, self._folder, FIRST)


def _load_second(folder: Path, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    network = clip.load_text_encoder(folder, SECOND, dtype=dtype, device=device, projection=True)
    return network.eval().requires_grad_(False)
