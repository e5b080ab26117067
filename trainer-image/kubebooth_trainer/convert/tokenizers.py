"""Tokenizers of the Diffusers layout, from the vocabulary of CLIP that ships with this package."""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

from kubebooth_trainer.errors import InternalFault

WORDS = 49408
"""Entries of CLIP's vocabulary: 256 bytes, the same as ends of words, merges and two marks."""
_MERGES = WORDS - 2 * 256 - 2
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@cache
def clip_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words in the order of their numbers, and merges as `left right`."""
    path = files("kubebooth_trainer.convert").joinpath("data/clip_bpe.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    merges = tuple(lines[1 : 1 + _MERGES])
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in merges] + [BEGIN, END]
    if len(set(words)) != WORDS:
        raise InternalFault("the bundled vocabulary of CLIP is damaged; install the package again")
    return tuple(words), merges


def _letters() -> list[str]:
    """The printable stand-ins of the 256 bytes in CLIP's order: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(rest)]


def clip_files(*, pad: str) -> dict[str, bytes]:
    """File name → bytes of a CLIP tokenizer that fills up with `pad`: `<|endoftext|>` where the
    text encoder is CLIP-L, `!` where it is OpenCLIP."""
    words, merges = clip_vocabulary()
    vocabulary = {word: number for number, word in enumerate(words)}
    marks = {"bos_token": _mark(BEGIN), "eos_token": _mark(END), "unk_token": _mark(END)}
    special = {name: {k: v for k, v in mark.items() if k != "__type"}
               for name, mark in marks.items()}  # fmt: skip
    config = {
        "add_prefix_space": False, **marks, "do_lower_case": True, "errors": "replace",
        "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    return {
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "special_tokens_map.json": _json({**special, "pad_token": pad}),
        "tokenizer_config.json": _json(config),
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")).encode(),
    }


def _mark(word: str) -> dict[str, Any]:
    return {
        "__type": "AddedToken", "content": word, "lstrip": False, "normalized": True,
        "rstrip": False, "single_word": False,
    }  # fmt: skip


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
