"""Writes the folder of a low-rank update: a file for diffusers and one for web UIs.

The second says with metadata what it is, in the dialects of kohya's scripts and of ModelSpec.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun
from safetensors.torch import save_file
from torch import Tensor

from kubebooth_trainer.families.door import PrecisionName
from kubebooth_trainer.train.dataset import Snapshot
from kubebooth_trainer.train.lora import Layer
from kubebooth_trainer.train.lora_names import diffusers_names, kohya_names
from kubebooth_trainer.train.stages import plan_stages

FOR_DIFFUSERS = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for in a folder."""
LONGEST_NAME = 40
READABLE = 0o644
"""A web UI runs as another user; safetensors would let only its own read the file."""
DTYPES = {"Fp16": torch.float16, "Bf16": torch.bfloat16}
BASES = {"sd15": "sd_v1", "sd21-512": "sd_v2", "sd21-768": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}
"""Variant → `ss_base_model_version`; Flux is `flux1`."""
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd21-512": "stable-diffusion-v2-512",
    "sd21-768": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "flux-dev": "flux-1-dev",
    "flux-schnell": "flux-1-schnell",
}
"""Variant → `modelspec.architecture`, without `/lora`."""


@dataclass(frozen=True)
class About:
    """What the files say about themselves, and what their names are made of."""

    run: TrainRun
    snapshot: Snapshot
    config: Mapping[str, Any]
    """That of the denoiser."""


def write_lora(
    folder: Path, layers: Sequence[Layer], about: About, *, precision: PrecisionName
) -> None:
    """Write both files into a new folder; `Keep` is float32, as the update was trained."""
    folder.mkdir(parents=True)
    dtype = DTYPES.get(precision, torch.float32)
    family = BASE_MODELS[about.run.variant].family
    _save(diffusers_names(layers, family=family), folder / FOR_DIFFUSERS, {}, dtype=dtype)
    tensors = kohya_names(layers, family=family, config=about.config)
    told = {**_kohya(about), **_model_spec(about)}
    path = folder / file_name(about.snapshot)
    _save(tensors, path, told, dtype=dtype)
    digest = _tensor_digest(path)
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    _save(tensors, path, told | hashes, dtype=dtype)


def file_name(snapshot: Snapshot) -> str:
    """Name of the file for web UIs, out of the prompt that calls the subject."""
    said = snapshot.instance_prompts[0].lower()
    plain = "".join(c if c.isascii() and c.isalnum() else " " for c in said)
    return ("-".join(plain.split())[:LONGEST_NAME].strip("-") or "subject") + ".safetensors"


def _save(
    tensors: Mapping[str, Tensor], path: Path, told: Mapping[str, str], *, dtype: torch.dtype
) -> None:
    ready = {name: t.detach().to("cpu", dtype).contiguous() for name, t in tensors.items()}
    save_file(ready, path, metadata={"format": "pt", **told})
    _sort_header(path)
    os.chmod(path, READABLE)


def _sort_header(path: Path) -> None:
    """safetensors writes metadata in an order of chance: equal updates must give equal bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _tensor_digest(path: Path) -> str:
    """SHA-256 over all bytes after the header: both dialects mean those."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kohya(about: About) -> dict[str, str]:
    """`ss_*`, as far as it is true here; no clock, so equal runs give equal bytes."""
    run, training = about.run, about.run.training
    lora = training.lora
    rank = lora.rank if lora else 16
    alpha = (lora.alpha if lora else None) or rank
    more: dict[str, Any] = {}
    if lora and "Convolution" in lora.targets:
        conv = lora.conv_rank or rank
        more = {"conv_dim": str(conv), "conv_alpha": str(lora.conv_alpha or conv)}
    if lora and lora.dora:
        more["dora_wd"] = "True"
    prior = training.prior_preservation
    told: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(alpha),
        "ss_network_dropout": lora.dropout if lora else 0.0,
        "ss_network_args": json.dumps(more, sort_keys=True),
        "ss_base_model_version": BASES.get(run.variant, "flux1"),
        "ss_v2": run.variant.startswith("sd21"),
        "ss_learning_rate": training.denoiser.learning_rate,
        "ss_unet_lr": training.denoiser.learning_rate,
        "ss_text_encoder_lr": training.text_encoder.learning_rate,
        "ss_lr_scheduler": training.denoiser.lr_scheduler,
        "ss_max_train_steps": sum(stage.steps for stage in plan_stages(training)),
        "ss_steps": sum(stage.steps for stage in plan_stages(training)),
        "ss_num_train_images": len(about.snapshot.pictures),
        "ss_num_reg_images": prior.num_images if prior else 0,
        "ss_prior_loss_weight": prior.weight if prior else 1.0,
        "ss_batch_size_per_device": training.batch_size,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_optimizer": training.optimizer,
        "ss_mixed_precision": training.mixed_precision.lower(),
        "ss_resolution": f"({run.resolution}, {run.resolution})",
        "ss_noise_offset": training.offset_noise or None,
        "ss_min_snr_gamma": training.min_snr_gamma,
        "ss_zero_terminal_snr": training.zero_terminal_snr,
        "ss_caption_dropout_rate": training.caption_dropout,
        "ss_shuffle_caption": training.caption_shuffle,
        "ss_keep_tokens": training.caption_keep_tokens,
        "ss_seed": training.seed,
        "ss_output_name": file_name(about.snapshot).removesuffix(".safetensors"),
        "ss_training_comment": f"run {run.digest}, base {run.base_model.digest}",
    }
    return {key: str(value) for key, value in told.items()}


def _model_spec(about: About) -> dict[str, str]:
    """ModelSpec 1.0.1."""
    run, row = about.run, BASE_MODELS[about.run.variant]
    told = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{ARCHITECTURES.get(run.variant, run.variant)}/lora",
        "implementation": "diffusers",
        "title": about.snapshot.instance_prompts[0],
        "resolution": f"{run.resolution}x{run.resolution}",
        "license": row.license,
        "trigger_phrase": about.snapshot.instance_prompts[0],
    }
    if row.family != "flux":
        told["prediction_type"] = "v" if row.prediction_type == "v_prediction" else "epsilon"
    return {f"modelspec.{key}": value for key, value in told.items()}
