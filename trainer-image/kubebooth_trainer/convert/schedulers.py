"""Scheduler configs of every family, with the prediction type in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubebooth_trainer.convert.declared import EPSILON, V_PREDICTION
from kubebooth_trainer.convert.detection import Detected

_NOISE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "trained_betas": None,
}
KNOWS_ZERO_SNR = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
"""Schedulers that can rescale the schedule so that it ends in pure noise."""


def scheduler_of(found: Detected) -> dict[str, Any]:
    """The scheduler that the family is published with."""
    if found.layout == "flux":
        return _flux(dynamic=found.variant != "flux-schnell")
    prediction = found.prediction_type or EPSILON
    if found.layout == "sdxl":
        made = {
            **_NOISE, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear",
            "prediction_type": prediction, "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        }  # fmt: skip
    elif prediction == V_PREDICTION:
        made = {
            **_NOISE, "_class_name": "DDIMScheduler", "clip_sample": False,
            "prediction_type": prediction, "set_alpha_to_one": False,
        }  # fmt: skip
    else:
        made = {
            **_NOISE, "_class_name": "PNDMScheduler", "prediction_type": prediction,
            "set_alpha_to_one": False, "skip_prk_steps": True,
        }  # fmt: skip
    return with_prediction(made, found)


def with_prediction(config: Mapping[str, Any], found: Detected) -> dict[str, Any]:
    """A scheduler config that says what the model predicts."""
    told = dict(config)
    if found.layout == "flux":
        return told
    told["prediction_type"] = found.prediction_type or EPSILON
    if found.zero_terminal_snr and told.get("_class_name") in KNOWS_ZERO_SNR:
        told |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return told


def _flux(*, dynamic: bool) -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0 if dynamic else 1.0,
        "use_dynamic_shifting": dynamic,
    }
