"""What prompts mean to the denoiser: computed once while no text encoder learns, kept in the store.

Embeddings are found by their prompt and by what names the text encoder's weights, never by place.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from threading import Event
from typing import Any

import torch
from torch import Tensor

from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.families.door import Conditioning, Model
from kubebooth_trainer.train.cache import Cache, Form, Named

MOST_STORED_BYTES = 8 << 30
"""Embeddings kept in the store and on disk; a prompt beyond is embedded when it is asked for."""
MOST_HELD_BYTES = 1 << 30
"""Embeddings held in memory of prompts that are not stored, such as shuffled captions."""
MOST_RESIDENT_BYTES = 256 << 20
"""Stored embeddings that are moved to the device once instead of in every update."""


class Words:
    """Text conditioning of batches: found or computed once per prompt while the text encoder is
    frozen, and once per distinct prompt of a batch while it learns."""

    def __init__(
        self,
        model: Model,
        *,
        frozen: bool,
        device: torch.device,
        stored: Mapping[str, Conditioning] | None = None,
    ) -> None:
        self._model, self._frozen, self._device = model, frozen, device
        self._stored = _resident(stored or {}, device)
        self._held: OrderedDict[str, Conditioning] = OrderedDict()

    def of(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of a batch, in the order of its prompts."""
        if self._frozen:
            known = [self._one(prompt) for prompt in prompts]
            return {
                name: torch.stack([one[name] for one in known]).to(self._device)
                for name in known[0]
            }
        distinct = list(dict.fromkeys(prompts))
        places = [distinct.index(prompt) for prompt in prompts]
        return {name: t[places] for name, t in self._model.embed(distinct).items()}

    def _one(self, prompt: str) -> Conditioning:
        if prompt in self._stored:
            return self._stored[prompt]
        if prompt not in self._held:
            embedded = embed_one(self._model, prompt)
            most = max(16, MOST_HELD_BYTES // max(1, Form.of(embedded).size_bytes))
            while len(self._held) >= most:
                self._held.popitem(last=False)
            self._held[prompt] = embedded
        self._held.move_to_end(prompt)
        return self._held[prompt]


def stored_words(
    model: Model, prompts: Sequence[str], *, cache: Cache, stop: Event
) -> dict[str, Conditioning]:
    """Embeddings of prompts, fetched or computed and published, as mapped files.

    Prompts beyond `MOST_STORED_BYTES` are left out. Raises `Preempted` when `stop` is set; what is
    embedded by then is kept.
    """
    if not prompts:
        return {}
    form = Form.of(embed_one(model, prompts[0]))
    kept = prompts[: max(1, MOST_STORED_BYTES // max(1, form.size_bytes))]
    by_key = {hashlib.sha256(prompt.encode()).hexdigest(): prompt for prompt in kept}

    def compute(keys: Sequence[str]) -> Iterator[Named]:
        for key in keys:
            if stop.is_set():
                raise Preempted("stopped while embedding captions; those done so far are kept")
            yield embed_one(model, by_key[key])

    found = cache.all_of(dict.fromkeys(by_key, form), compute)
    return {by_key[key]: tensors for key, tensors in found.items()}


@torch.no_grad()
def embed_one(model: Model, prompt: str) -> dict[str, Tensor]:
    """Conditioning of one prompt by itself: it must not depend on its neighbours in a batch."""
    return {name: tensor[0] for name, tensor in model.embed([prompt]).items()}


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named weights, 64 hex digits: what names a text encoder that was trained."""
    hasher = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        told = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        hasher.update(told)
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def text_identity(files: Mapping[str, str], trained: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names the text side: digests of the base model's files, and of weights that learned."""
    names = ("text_encoder", "tokenizer")
    told = {path: sha for path, sha in files.items() if path.startswith(names)}
    return {"text": told, **({"trained": weights_digest(trained)} if trained else {})}


def _resident(stored: Mapping[str, Conditioning], device: torch.device) -> dict[str, Conditioning]:
    size = sum(Form.of(one).size_bytes for one in stored.values())
    if device.type == "cpu" or size > MOST_RESIDENT_BYTES:
        return dict(stored)
    return {
        prompt: {name: t.to(device) for name, t in one.items()} for prompt, one in stored.items()
    }
