"""Which wishes about memory and speed this worker cannot honour, before anything is fetched."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun

from kubebooth_trainer.errors import ConfigurationError

COMPILERS = ("c++", "g++", "clang++")


def refuse_memory(run: TrainRun) -> None:
    """Raise `ConfigurationError` that names the field and the cure."""
    _refuse_quantized(run)
    if run.training.compile and not any(shutil.which(name) for name in COMPILERS):
        where = "an accelerator" if torch.cuda.is_available() else "a CPU"
        raise ConfigurationError(
            f"training.compile needs a C++ compiler to make code for {where}, and this worker has"
            " none; install g++ in its image, or set it to false",
            reason="LibraryMissing",
        )


def _refuse_quantized(run: TrainRun) -> None:
    form, family = run.training.memory.quantized_base, BASE_MODELS[run.variant].family
    if form == "None":
        return
    if family != "flux":
        raise ConfigurationError(
            f"training.memory.quantizedBase {form} is for Flux; set it to None for {run.variant}"
        )
    if form == "Fp8":
        raise ConfigurationError(
            "training.memory.quantizedBase Fp8 is not in this version; use Int8 or Nf4"
        )
    if run.training.method != "LoRA":
        raise ConfigurationError(
            "training.memory.quantizedBase freezes the base: set training.method: LoRA or"
            " quantizedBase: None"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"training.memory.quantizedBase {form} needs the package bitsandbytes, which this"
            " worker does not have; install the extra kubebooth[quantized], or set it to None",
            reason="LibraryMissing",
        )
