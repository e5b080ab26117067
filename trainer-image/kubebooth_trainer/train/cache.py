"""Tensors that are costly to compute and are kept in the store, in small published shards.

A shard is a folder of its own, named by all that determines its content, so another run with the
same inputs finds it, and a killed computation loses one shard at most. Shards are cut by their
items' keys: one more item changes one shard. Files are mapped into memory, never read as a whole.
It must not know what the tensors mean.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kubebooth_api import layout
from kubebooth_api.digests import digest_json, short
from kubebooth_store import Conflict, Corrupt, NotFound, Refused, Store, fetch, publish
from kubebooth_store import read_manifest as manifest_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KIND, FILE = "cache", "tensors.safetensors"
VERSION = 1
SHARD_BYTES = 16 << 20
MOST_ITEMS = 32
_CUT_EVERY = 8
_HEADER_BYTES = 1 << 16
log = logging.getLogger(__name__)

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """What an item's tensors must be; anything else is computed anew."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]

    @staticmethod
    def of(tensors: Named) -> Form:
        """The form of an example."""
        return Form(
            {name: tuple(t.shape) for name, t in tensors.items()},
            {name: t.dtype for name, t in tensors.items()},
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of one item."""
        return sum(
            torch.Size(shape).numel() * self.dtypes[name].itemsize
            for name, shape in self.shapes.items()
        )

    def fits(self, tensors: Named) -> bool:
        """Whether tensors have this form and only finite numbers."""
        return (
            {name: tuple(t.shape) for name, t in tensors.items()} == dict(self.shapes)
            and all(t.dtype == self.dtypes[name] for name, t in tensors.items())
            and all(bool(torch.isfinite(t).all()) for t in tensors.values())
        )


Compute = Callable[[Sequence[str]], Iterable[Named]]
"""Gives the tensors of keys, in their order."""


class Cache:
    """The cached tensors of one kind that one identity, such as a VAE's digest, determines."""

    def __init__(
        self, store: Store, *, session_prefix: str, folder: Path, identity: Mapping[str, Any]
    ) -> None:
        self._store, self._session, self._folder = store, session_prefix, folder
        self._identity = dict(identity)

    def all_of(
        self,
        forms: Mapping[str, Form],
        compute: Compute,
        *,
        on_done: Callable[[int], None] = lambda _count: None,
    ) -> dict[str, dict[str, Tensor]]:
        """The tensors of all keys of `forms`, fetched or computed and published.

        They are views of mapped files, on the CPU. Raises what `compute` raises; the shards that
        are done by then are kept.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for keys in shards(forms):
            found |= self._shard(keys, forms, compute)
            on_done(len(found))
        return found

    def _shard(
        self, keys: Sequence[str], forms: Mapping[str, Form], compute: Compute
    ) -> dict[str, dict[str, Tensor]]:
        digest = digest_json({"version": VERSION, "identity": self._identity, "items": list(keys)})
        prefix, folder = layout.cache(self._session, digest), self._folder / short(digest)
        wanted = {key: forms[key] for key in keys}
        there = self._fetched(prefix, folder, digest, wanted)
        if there is not None:
            return there
        folder.mkdir(parents=True)
        tensors = {
            f"{key}/{name}": tensor.detach().cpu().contiguous()
            for key, named in zip(keys, compute(keys), strict=True)
            for name, tensor in named.items()
        }
        save_file(tensors, folder / FILE)
        del tensors
        try:
            publish(self._store, prefix, folder, kind=KIND, metadata={"inputs": digest})
        except Conflict:
            # Another worker was first; what it published counts, so that all train on the same.
            there = self._fetched(prefix, folder, digest, wanted)
            if there is None:
                raise
            return there
        return _opened(folder, wanted)

    def _fetched(
        self, prefix: str, folder: Path, digest: str, wanted: Mapping[str, Form]
    ) -> dict[str, dict[str, Tensor]] | None:
        """What is published and sound; what is broken is removed to be made anew."""
        shutil.rmtree(folder, ignore_errors=True)
        most = sum(form.size_bytes for form in wanted.values()) + _HEADER_BYTES
        try:
            manifest = manifest_of(self._store, prefix)
            if manifest is None:
                return None
            if manifest.kind != KIND or manifest.metadata.get("inputs") != digest:
                raise Corrupt("it was made of other inputs")
            fetch(self._store, prefix, folder, expect_digest=manifest.digest, max_bytes=most)
            return _opened(folder, wanted)
        except (Corrupt, NotFound, Refused) as error:
            log.warning("cache %s is broken and computed again: %s", prefix, error)
            self._store.delete_prefix(prefix)
            shutil.rmtree(folder, ignore_errors=True)
            return None


def shards(keys: Iterable[str] | Mapping[str, Form]) -> Iterator[list[str]]:
    """Cut keys into shards: sorted, and cut behind every eighth key on average, by the key itself.

    With forms given, a shard has `SHARD_BYTES` at most, but one item at least.
    """
    shard: list[str] = []
    size = 0
    for key in sorted(set(keys)):
        more = keys[key].size_bytes if isinstance(keys, Mapping) else 0
        if shard and size + more > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(key)
        size += more
        if len(shard) == MOST_ITEMS or int(short(digest_json(key)), 16) % _CUT_EVERY == 0:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _opened(folder: Path, wanted: Mapping[str, Form]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a shard by key. Raises `Corrupt` when they are not what is wanted."""
    try:
        tensors = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise Corrupt(f"{FILE} cannot be read ({error})") from error
    found: dict[str, dict[str, Tensor]] = {key: {} for key in wanted}
    for full, tensor in tensors.items():
        key, _, name = full.rpartition("/")
        if key not in found:
            raise Corrupt(f"{FILE} holds {full[:80]!r}, which nobody asked for")
        found[key][name] = tensor
    for key, form in wanted.items():
        if not form.fits(found[key]):
            raise Corrupt(f"{FILE} holds tensors of a wrong form or not finite for {key[:80]}")
    return found
