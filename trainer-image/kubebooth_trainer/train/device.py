"""Where training computes, in which precision, and how it is kept repeatable."""

from __future__ import annotations

import os

import torch
from kubebooth_api.v1alpha1.training import Training

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.train.stages import Part, Stage, trained_parts

SHARE_OF_FREE_MEMORY = 0.85
"""What the estimate may take of the free memory before time is traded for memory."""


def place(training: Training) -> Placement:
    """The accelerator, if there is one, and the precision of forward passes.

    Raises `ConfigurationError` for fp16 on a CPU.
    """
    wanted = training.mixed_precision
    if torch.cuda.is_available():
        best = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        chosen = {"Auto": best, "Bf16": torch.bfloat16, "Fp16": torch.float16, "No": None}
        return Placement(torch.device("cuda"), chosen[wanted])
    if wanted == "Fp16":
        raise ConfigurationError(
            "training.mixedPrecision Fp16 needs an accelerator and this machine shows none; set it"
            " to Auto or No, or ask for one in runtime.resources.gpu"
        )
    return Placement(torch.device("cpu"), torch.bfloat16 if wanted == "Bf16" else None)


def make_repeatable() -> None:
    """Make torch refuse operations whose result depends on timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def choose_memory(
    model: Model,
    stages: tuple[Stage, ...],
    *,
    training: Training,
    resolution: int,
    placement: Placement,
) -> str:
    """Turn gradient checkpointing on or off; the name of the memory profile.

    The name tells device, precision and whether activations are recomputed, such as
    `cuda-bf16-checkpointing`.
    """
    samples = training.batch_size * (2 if training.prior_preservation else 1)
    # Under a low-rank update the model's own weights have neither gradients nor moments.
    whole = training.method != "LoRA"
    parts: tuple[Part, ...] = tuple(trained_parts(stages)) if whole else ()
    need = model.training_bytes(parts, batch=samples, size=(resolution, resolution))
    short = need > SHARE_OF_FREE_MEMORY * _free_bytes(placement.device)
    on = {"On": True, "Off": False, "Auto": short}[training.gradient_checkpointing]
    model.save_memory(on)
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        placement.autocast or torch.float32, "fp32"
    )
    return f"{placement.device.type}-{precision}{'-checkpointing' if on else ''}"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_allocated(device)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
