"""How large the base model at hand is, from its files' headers, and how much memory is free."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import torch
from kubebooth_api.catalog import BASE_MODELS
from safetensors import SafetensorError, safe_open

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families.activations import activation_bytes, width_of
from kubebooth_trainer.families.files import read_json, weight_files
from kubebooth_trainer.train.memory import Sizes

DENOISERS = {"UNet": "unet", "Transformer": "transformer"}
CONTEXT_BYTES = 700 << 20
"""What an accelerator's libraries take for themselves."""
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of control groups, of version 2 and 1: the most and the present memory in bytes."""


def sizes_of(
    folder: Path, variant: str, *, samples: int, size: tuple[int, int], half: bool
) -> Sizes:
    """Sizes of a Diffusers layout; `samples` pictures of `size` (height, width) go through at
    once. Raises `DataError` that names the file."""
    row = BASE_MODELS[variant]
    denoiser = DENOISERS[row.denoiser]
    config = read_json(folder, f"{denoiser}/config.json")
    kept, recomputed = activation_bytes(row.family, config, samples=samples, size=size, half=half)
    second = "text_encoder_2"
    return Sizes(
        denoiser=_weights(folder, denoiser),
        text_encoder=_weights(folder, "text_encoder"),
        resting=_weights(folder, second) if (folder / second).is_dir() else 0,
        vae=_weights(folder, "vae"),
        width=width_of(row.family, config),
        kept_bytes=kept,
        recomputed_bytes=recomputed,
    )


def _weights(folder: Path, component: str) -> int:
    """Number of weights of a component, without reading them."""
    count = 0
    for path in weight_files(folder, component).paths:
        try:
            with safe_open(path, framework="pt") as file:
                count += sum(math.prod(file.get_slice(k).get_shape()) for k in list(file.keys()))
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"base model: {component}/{path.name} is not a sound safetensors file ({error});"
                " upload it again"
            ) from error
    return count


def free_bytes(device: torch.device) -> int:
    """Memory that training may take: of the accelerator, or of the host within its limits."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(0, free + torch.cuda.memory_reserved(device) - CONTEXT_BYTES)
    known = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    known += [left for most, present in LIMITS if (left := _left(most, present)) is not None]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        known.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(known))


def _left(most: str, present: str) -> int | None:
    try:
        limit, used = Path(most).read_text().strip(), Path(present).read_text().strip()
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or "max"
        return None
