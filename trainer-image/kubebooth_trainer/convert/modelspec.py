"""ModelSpec 1.0.1: what a single file says of itself, read and written.

Source of the fields: the ModelSpec standard of Stability AI. `hash_sha256` is not written: it
stands before the bytes that it covers, which are written only once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kubebooth_trainer.convert.declared import ARCHITECTURES, V_PREDICTION
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.errors import ConfigurationError

VERSION = "1.0.1"
PREFIX = "modelspec."
CONFIGS = "kubebooth.config"
"""Metadata key of the configs that shapes cannot tell, as JSON by component."""
_STALE = ("modelspec.hash_sha256", CONFIGS)
"""Said of other bytes than those that are written."""
_EDGES = {
    "sd15": 512, "sd21-512": 512, "sd21-768": 768, "sdxl": 1024, "flux-dev": 1024,
    "flux-schnell": 1024,
}  # fmt: skip
_IMPLEMENTATIONS: Mapping[Layout, str] = {
    "sd1": "https://github.com/CompVis/stable-diffusion",
    "sd2": "https://github.com/Stability-AI/stablediffusion",
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux": "https://github.com/black-forest-labs/flux",
}
_MOST_BYTES = 1 << 20
"""Longest value that is carried from source to target."""


def written(
    source: Mapping[str, str], asked: Mapping[str, str], found: Detected, *, name: str
) -> dict[str, str]:
    """Metadata of a file: those of the source, what is known, and what the caller asks for."""
    told = {key: value for key, value in source.items()
            if key not in _STALE and len(value) <= _MOST_BYTES}  # fmt: skip
    told.setdefault("format", "pt")
    architecture = _architecture(found)
    if architecture is not None and found.layout is not None:
        edge = _EDGES[found.variant or ""]
        told[f"{PREFIX}sai_model_spec"] = VERSION
        told[f"{PREFIX}architecture"] = architecture
        implementation = _IMPLEMENTATIONS[found.layout]
        told[f"{PREFIX}implementation"] = "diffusers" if found.kind == "Lora" else implementation
        told.setdefault(f"{PREFIX}title", name)
        told.setdefault(f"{PREFIX}resolution", f"{edge}x{edge}")
        told.update(_prediction(found))
    for key, value in asked.items():
        if not key or not all(c.isascii() and (c.isalnum() or c in "._-") for c in key):
            raise ConfigurationError(
                f"target.metadata: {key[:60]!r} is no name of a ModelSpec field; use letters,"
                " digits, dots and underscores",
                reason="BadMetadata",
            )
        told[key if "." in key else f"{PREFIX}{key}"] = value
    return told


def with_configs(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Metadata that carry configs to a later way back."""
    text = json.dumps(configs, sort_keys=True, separators=(",", ":"))
    return {CONFIGS: text} if configs and len(text) <= _MOST_BYTES else {}


def configs_in(metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
    """Configs that `with_configs` left; nothing where they are not readable."""
    try:
        told = json.loads(metadata.get(CONFIGS, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {folder: values for folder, values in told.items() if isinstance(values, dict)}


def _architecture(found: Detected) -> str | None:
    name = next((a for a, variant in ARCHITECTURES.items() if variant == found.variant), None)
    if name is None or found.kind == "Pipeline":
        return name
    return f"{name}/{found.kind.lower()}"


def _prediction(found: Detected) -> dict[str, str]:
    if found.layout == "flux" or found.prediction_type is None:
        return {}
    told = "v" if found.prediction_type == V_PREDICTION else "epsilon"
    return {f"{PREFIX}prediction_type": told}
