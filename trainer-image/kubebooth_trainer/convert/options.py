"""What is asked of a conversion, besides the source itself.

The command line starts within tenths of a second: nothing here may import pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kubebooth_trainer.convert.door import Form, Opened

Precision = Literal["Keep", "Fp16", "Bf16", "Fp32"]
ModelKind = Literal["Auto", "Pipeline", "Vae", "ControlNet", "Lora"]
SourceVariant = Literal["Auto", "sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev", "flux-schnell"]
PredictionType = Literal["Auto", "Epsilon", "VPrediction", "Flow"]
DTYPES: Mapping[Precision, str | None] = {
    "Keep": None, "Fp16": "F16", "Bf16": "BF16", "Fp32": "F32",
}  # fmt: skip
"""Precision → dtype as safetensors spells it."""


@dataclass(frozen=True)
class ComponentPrecision:
    """Precision of single components, against that of the whole."""

    denoiser: Precision | None = None
    text_encoder: Precision | None = None
    vae: Precision | None = None


@dataclass(frozen=True)
class Merged:
    """A low-rank update to add to the weights."""

    update: Opened
    weight: float = 1.0
    name: str = "update"
    """What to call it in errors."""


@dataclass(frozen=True)
class Options:
    """How to convert; every default leaves the model as it is."""

    form: Form
    """What is written."""
    name: str = "model"
    """Stem of the file of a single-file target."""
    precision: Precision = "Keep"
    component_precision: ComponentPrecision = field(default_factory=ComponentPrecision)
    """Exceptions by component."""
    component: ModelKind = "Auto"
    """What the source is."""
    variant: SourceVariant = "Auto"
    """Variant of the source."""
    prediction_type: PredictionType = "Auto"
    """Prediction type of the source."""
    ema: Literal["Keep", "Use", "Drop"] = "Drop"
    """Averaged weights: kept beside the plain ones, put in their place, or left out."""
    vae: Opened | None = None
    """VAE that replaces the source's."""
    merge_loras: tuple[Merged, ...] = ()
    """Low-rank updates to add to the weights."""
    lora_dialect: Literal["Kohya", "Peft"] = "Kohya"
    """Names of the keys where the source is a LoRA."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """ModelSpec fields to write, such as `title`."""
    configs_from: Opened | None = None
    """A Diffusers folder of a like model, whose configs and tokenizers are taken where a single
    file cannot tell them: heads of unusual widths, a vocabulary of one's own, T5's tokenizer."""
