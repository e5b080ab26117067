"""What a source says of itself in words: configs, scheduler, ModelSpec, YAML beside the file.

Nothing here looks at tensors; all texts are hostile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.errors import DataError

EPSILON, V_PREDICTION, FLOW = "epsilon", "v_prediction", "flow"
_YAML = re.compile(rb"^\s*parameterization\s*:\s*[\"']?(v|eps)[\"']?\s*(#.*)?$", re.MULTILINE)
_SPEC_PREDICTIONS = {
    "epsilon": EPSILON, "eps": EPSILON, "v": V_PREDICTION, "v_prediction": V_PREDICTION,
    "flow": FLOW,
}  # fmt: skip
ARCHITECTURES: Mapping[str, str] = {
    "stable-diffusion-v1": "sd15",
    "stable-diffusion-v2-512": "sd21-512",
    "stable-diffusion-v2-768-v": "sd21-768",
    "stable-diffusion-xl-v1-base": "sdxl",
    "flux-1-dev": "flux-dev",
    "flux-1-schnell": "flux-schnell",
}
"""Architecture of ModelSpec → variant."""


def json_of(opened: Opened, path: str) -> Mapping[str, Any] | None:
    """The JSON object of a small file, None where it is absent. Raises `DataError`."""
    text = opened.texts.get(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON; copy it again", reason="BadConfig") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; copy it again", reason="BadConfig")
    return value


def spec_variant(opened: Opened) -> str | None:
    """Variant that the ModelSpec metadata name, adapters and inpainting models included."""
    architecture = opened.metadata.get("modelspec.architecture", "").split("/")[0].lower()
    return ARCHITECTURES.get(architecture.removesuffix("-inpainting"))


def prediction(opened: Opened) -> tuple[str, str] | None:
    """Prediction type that the source declares, and where; the first that speaks counts:
    scheduler config, marker tensors, ModelSpec, YAML."""
    path = "scheduler/scheduler_config.json"
    scheduler = json_of(opened, path)
    if scheduler is not None:
        told = scheduler.get("prediction_type")
        if told in (EPSILON, V_PREDICTION):
            return told, f"{path} says {told}"
        if str(scheduler.get("_class_name", "")).startswith("FlowMatch"):
            return FLOW, f"{path} is a flow-matching scheduler"
        if told is not None:
            raise DataError(
                f"{path}: prediction_type {str(told)[:40]!r} is not known; set predictionType to"
                " Epsilon or VPrediction",
                reason="UnknownPredictionType",
            )
        # The oldest files do not say; all of them predict the noise.
        return EPSILON, f"{path} says nothing, which is epsilon"
    marker = next((m for m in ("v_pred", "edm_vpred.sigma_max") if m in opened.tensors), None)
    if marker is not None:
        return V_PREDICTION, f"marker tensor {marker}"
    told = _SPEC_PREDICTIONS.get(opened.metadata.get("modelspec.prediction_type", "").lower())
    if told is not None:
        return told, f"modelspec.prediction_type says {told}"
    return _of_yaml(opened)


def _of_yaml(opened: Opened) -> tuple[str, str] | None:
    for path, text in sorted(opened.texts.items()):
        if path.endswith((".yaml", ".yml")) and (found := _YAML.search(text)):
            told = V_PREDICTION if found[1] == b"v" else EPSILON
            return told, f"{path}: parameterization {found[1].decode()}"
    return None


def zero_terminal_snr(opened: Opened) -> bool:
    """Whether the noise schedule was rescaled to end in pure noise."""
    scheduler = json_of(opened, "scheduler/scheduler_config.json") or {}
    return scheduler.get("rescale_betas_zero_snr") is True or "ztsnr" in opened.tensors


def layout_of_variant(variant: str) -> Layout | None:
    """Layout of names that a variant has."""
    layouts: Mapping[str, Layout] = {
        "sd15": "sd1", "sd21-512": "sd2", "sd21-768": "sd2", "sdxl": "sdxl",
        "flux-dev": "flux", "flux-schnell": "flux",
    }  # fmt: skip
    return layouts.get(variant)
