"""Where training computes, in which precision, and how it is kept repeatable."""

from __future__ import annotations

import os

import torch
from kubebooth_api.v1alpha1.training import Training

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Placement


def place(training: Training) -> Placement:
    """The accelerator, if there is one, and the precision of forward passes.

    Under a low-rank update the model's own weights are kept in that precision as well. Raises
    `ConfigurationError` for fp16 on a CPU.
    """
    wanted = training.mixed_precision
    if torch.cuda.is_available():
        best = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        chosen = {"Auto": best, "Bf16": torch.bfloat16, "Fp16": torch.float16, "No": None}
        return _placed(training, torch.device("cuda"), chosen[wanted])
    if wanted == "Fp16":
        raise ConfigurationError(
            "training.mixedPrecision Fp16 needs an accelerator and this machine shows none; set it"
            " to Auto or No, or ask for one in runtime.resources.gpu"
        )
    return _placed(training, torch.device("cpu"), torch.bfloat16 if wanted == "Bf16" else None)


def _placed(training: Training, device: torch.device, autocast: torch.dtype | None) -> Placement:
    frozen = autocast if training.method == "LoRA" and autocast is not None else torch.float32
    return Placement(device, autocast, frozen=frozen, quantized=training.memory.quantized_base)


def precision_of(placement: Placement) -> str:
    """Short name of the precision of forward passes."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names.get(placement.autocast or torch.float32, "fp32")


def make_repeatable() -> None:
    """Make torch refuse operations whose result depends on timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
