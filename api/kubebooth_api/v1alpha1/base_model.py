"""Which model a session starts from."""

from __future__ import annotations

from typing import ClassVar, Literal

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import (
    HuggingFaceSource,
    ObjectRef,
    StoreSource,
    UrlSource,
    exactly_one,
)

Variant = Literal["sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev"]
"""Variants of the catalogue that can be trained."""


class ModelSource(Door):
    """Where a custom base model comes from."""

    store: StoreSource | None = None
    """A model in the session's store (Diffusers layout published with a manifest)."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of a Hugging Face hub."""
    url: UrlSource | None = None
    """A single-file checkpoint behind a URL."""
    session: ObjectRef | None = None
    """The artifact of another DreamboothSession in this namespace."""
    digest: Digest | None = None
    """Digest that the model must have; anything else is refused."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("store", "huggingFace", "url", "session", of="a model source"),
    )


class BaseModelRef(Door):
    """A row of the catalogue, or a custom model of the same variant."""

    variant: Variant
    """Architecture and prediction type: `sd15`, `sd21-512`, `sd21-768`, `sdxl` or `flux-dev`."""
    source: ModelSource | None = None
    """Where the weights come from; absent takes the catalogue's pinned source."""
