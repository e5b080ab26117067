"""The text side of Flux: T5 says the words, CLIP-L gives one vector of the whole prompt.

T5 is never trained: it is far larger than what it would learn from a handful of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import clip, networks
from kubebooth_trainer.families.door import Conditioning
from kubebooth_trainer.families.files import weight_files
from kubebooth_trainer.families.shelf import Shelf

FIRST, SECOND = "text_encoder", "text_encoder_2"
LONGEST_PROMPT = 512
EMBEDDING = "embed_tokens.weight"


class TextEncoders:
    """CLIP-L, which may be trained, and T5, which may not."""

    def __init__(
        self, folder: Path, *, first: torch.dtype, second: torch.dtype, device: torch.device
    ) -> None:
        self._folder, self._device = folder, device
        self._words = clip.load_tokenizer(folder, "tokenizer")
        self._pieces = load_t5_tokenizer(folder)
        self.first: nn.Module = clip.load_text_encoder(folder, FIRST, dtype=first, device=device)
        self.second = Shelf(lambda: load_t5(folder, dtype=second, device=device))

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """`text` [n, tokens, width of T5] in T5's own dtype, and `pooled` [n, width of CLIP-L] in
        float32, with gradients to CLIP-L where they are enabled."""
        pooled = self.first(clip.token_ids(self._words, prompts).to(self._device)).pooler_output
        batch = self._pieces(
            list(prompts),
            padding="max_length",
            max_length=min(int(self._pieces.model_max_length), LONGEST_PROMPT),
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            # No mask: Flux was trained to read the padding too.
            text: Tensor = self.second(batch["input_ids"].to(self._device))[0]
        dtype = next(self.second.parameters()).dtype
        return {"text": text.to(dtype), "pooled": pooled.float()}

    def reset(self) -> None:
        """Put the base weights of CLIP-L back."""
        clip.reset_text_encoder(self.first, self._folder, FIRST)


def load_t5_tokenizer(folder: Path) -> Any:
    """The tokenizer of T5. Raises `DataError`."""
    place = folder / "tokenizer_2"
    try:
        if not any((place / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            # The library would make up an empty vocabulary.
            raise ValueError("it has no vocabulary")
        return T5Tokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise DataError(
            f"base model: the folder tokenizer_2/ cannot be read ({str(error)[:300]}); it needs"
            " tokenizer.json or spiece.model"
        ) from error


def load_t5(folder: Path, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The frozen encoder of T5. Raises `DataError` when keys or shapes do not match."""
    config = networks.read_config(folder, SECOND)

    def make() -> nn.Module:
        with torch.device("meta"):
            whole = T5EncoderModel(T5Config(**config))
        encoder: nn.Module = whole.encoder
        return encoder

    model = networks.build(
        make,
        weight_files(folder, SECOND),
        dtype=dtype,
        device=device,
        rename=lambda expected: _fit,
    )
    return model.eval().requires_grad_(False)


def _fit(key: str) -> str | None:
    """A file's key → that of the encoder; its embedding has two names and may come under both."""
    return EMBEDDING if key == "shared.weight" else key.removeprefix("encoder.")
