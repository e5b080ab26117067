"""The text side: tokenizer, CLIP text encoder, and its keys in canonical form.

Files carry `text_model.` before every key, as transformers 4 and every single-file tool expect;
in memory the newest transformers has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.sd.files import Weights, read_json

PREFIX = "text_model."
LONGEST_PROMPT = 77


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys with `text_model.` before each, as they belong into a file."""
    return {key if key.startswith(PREFIX) else PREFIX + key: t for key, t in tensors.items()}


def fitted(tensors: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Keys as the model at hand wants them, whichever form the file has."""
    nested = any(key.startswith(PREFIX) for key in expected)
    plain = {key.removeprefix(PREFIX): t for key, t in tensors.items()}
    plain.pop("embeddings.position_ids", None)
    return {PREFIX + key: t for key, t in plain.items()} if nested else plain


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a layout. Raises `DataError`."""
    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"base model: the folder tokenizer/ cannot be read ({error}); it needs vocab.json and"
            " merges.txt, or tokenizer.json"
        ) from error


def load_text_encoder(folder: Path, weights: Weights) -> nn.Module:
    """The CLIP text encoder in float32. Raises `DataError` when keys or shapes do not match."""
    config = read_json(folder, "text_encoder/config.json")
    try:
        model: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
        tensors = fitted(weights.tensors, set(model.state_dict()))
        model.load_state_dict({key: t.float() for key, t in tensors.items()}, strict=True)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"base model: text_encoder/ does not hold the weights its config.json describes"
            f" ({str(error)[:300]})"
        ) from error
    return model


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids [n, tokens], cut or padded to the longest prompt the model reads."""
    length = min(int(tokenizer.model_max_length), LONGEST_PROMPT)
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = batch["input_ids"].to(torch.long)
    return ids
