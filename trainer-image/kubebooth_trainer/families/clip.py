"""CLIP's text side: tokenizer, text encoder with or without projection, and its keys in files.

Files carry `text_model.` before every key of the encoder, as transformers 4 and every single-file
tool expect; in memory the newest transformers has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import networks
from kubebooth_trainer.families.files import read_json, weight_files

PREFIX, PROJECTION = "text_model.", "text_projection."
POSITIONS = "embeddings.position_ids"
LONGEST_PROMPT = 77
TOKENIZER = "tokenizer.json"
TOKENIZER_STEPS = (
    "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"
)  # fmt: skip
TOKENIZER_FACTS = ("version", "added_tokens", "model")


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys with `text_model.` before each but the projection's, as they belong into a file."""
    bare = (PREFIX, PROJECTION)
    return {key if key.startswith(bare) else PREFIX + key: t for key, t in tensors.items()}


def fitting(expected: set[str]) -> networks.Rename:
    """A file's key → that of the model with these keys, whichever form the file has."""

    def fit(key: str) -> str | None:
        plain = key.removeprefix(PREFIX)
        if plain == POSITIONS:
            return None
        return plain if plain in expected else PREFIX + plain

    return fit


def load_tokenizer(folder: Path, component: str = "tokenizer") -> Any:
    """The CLIP tokenizer of a layout. Raises `DataError`."""
    if (folder / component / TOKENIZER).is_file():
        _check_tokenizer(read_json(folder, f"{component}/{TOKENIZER}"), component)
    try:
        return CLIPTokenizer.from_pretrained(folder / component, local_files_only=True)
    except (OSError, *networks.MALFORMED) as error:
        raise DataError(
            f"base model: the folder {component}/ cannot be read ({error}); it needs vocab.json and"
            " merges.txt, or tokenizer.json"
        ) from error


def _check_tokenizer(content: Mapping[str, Any], component: str) -> None:
    """Its reader raises a bare `Exception` over a malformed file, so the form is looked at here."""
    model = content.get("model")
    steps = [content.get(name) for name in TOKENIZER_STEPS]
    sound = (
        set(content) <= {*TOKENIZER_STEPS, *TOKENIZER_FACTS}
        and content.get("version") == "1.0"
        and isinstance(model, dict)
        and isinstance(model.get("vocab"), dict)
        and isinstance(model.get("merges"), list)
        and all(step is None or _is_step(step) for step in steps)
        and all(isinstance(token, dict) for token in content.get("added_tokens") or ())
    )
    if not sound:
        raise DataError(
            f"base model: {component}/{TOKENIZER} is no tokenizer as the tokenizers library writes"
            " it; upload the model again"
        )


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and bool({"type", "strategy", "max_length"} & set(step))


def load_text_encoder(
    folder: Path,
    component: str = "text_encoder",
    *,
    dtype: torch.dtype,
    device: torch.device,
    projection: bool = False,
) -> nn.Module:
    """The CLIP text encoder. Raises `DataError` when keys or shapes do not match."""
    config = networks.read_config(folder, component)
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel

    def make() -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = kind(CLIPTextConfig(**config))
        for module in model.modules():
            held = getattr(module, "position_ids", None)
            if isinstance(held, Tensor):  # not in files: they count from 0
                module.position_ids = torch.arange(held.shape[-1], device=device).unsqueeze(0)
        return model

    return networks.build(
        make, weight_files(folder, component), dtype=dtype, device=device, rename=fitting
    )


def reset_text_encoder(model: nn.Module, folder: Path, component: str = "text_encoder") -> None:
    """Put the weights of the files back."""
    rename = fitting(set(model.state_dict()))
    networks.refill(model, weight_files(folder, component), rename=rename)


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
