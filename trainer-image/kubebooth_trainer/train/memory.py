"""Memory profiles: what may be given up to fit, in which order, and what each one needs.

Pure: it decides by arithmetic, not by the name of an accelerator, and must not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kubebooth_api.v1alpha1.training import Training

Change = Literal["checkpointing", "released", "8bit", "fused", "streamed", "lora"]
GIB = 1 << 30
SHARE_OF_FREE_MEMORY = 0.85
"""What an estimate may take of the free memory: fragments and workspaces take the rest."""
OPTIMIZER_BYTES = {"AdamW": 8.0, "AdamW8bit": 2.04, "Adafactor": 0.02, "Prodigy": 16.0}
"""Optimizer state of one trained weight."""
SHARE_OF_VISITORS = 0.05
"""Most of the weights that are on the accelerator at once while they stream, and most of the
gradients that are there at once in fused updates."""
QUANTIZED_BYTES = {"Int8": 1.02, "Fp8": 1.02, "Nf4": 0.53}
"""A weight of a quantized base, with its scales."""


@dataclass(frozen=True)
class Profile:
    """One rung of the ladder: everything that is given up."""

    changes: tuple[Change, ...] = ()

    def has(self, change: Change) -> bool:
        """Whether this is given up."""
        return change in self.changes

    @property
    def result_changes(self) -> tuple[Change, ...]:
        """What of it makes another result than the settings say; the rest only takes time."""
        return tuple(change for change in self.changes if change in ("8bit", "lora"))

    def told(self, *, device: str, precision: str) -> str:
        """Its name, such as `cuda-bf16-checkpointing-released`."""
        return "-".join((device, precision, *self.changes))

    def applied(self, training: Training) -> Training:
        """The settings as they are trained in this profile."""
        if self.has("8bit") and training.optimizer == "AdamW":
            training = training.model_copy(update={"optimizer": "AdamW8bit"})
        if self.has("lora"):
            training = training.model_copy(update={"method": "LoRA"})
        return training


@dataclass(frozen=True)
class Sizes:
    """How large a base model is, in weights, and one forward pass in bytes."""

    denoiser: int
    text_encoder: int
    """The one that can be trained."""
    resting: int
    """Text encoders that are never trained."""
    vae: int
    width: int
    """Of a typical layer of the denoiser, for the size of a low-rank update."""
    kept_bytes: int
    """What a backward pass needs of its forward pass, for a whole batch."""
    recomputed_bytes: int
    """The same with gradient checkpointing."""


def ladder(
    training: Training, *, accelerator: bool, has_8bit: bool, scaled: bool = False
) -> tuple[Profile, ...]:
    """The profiles that these settings permit, the first the fastest, the last the smallest.

    Each gives up one thing more. Those that keep the result come before those that change it, but
    for fused updates and streaming, which are so slow that 8-bit state comes first. `scaled` tells
    whether losses are scaled, as in fp16.
    """
    memory, asked = training.memory, training.gradient_checkpointing
    full = training.method == "Full"
    plain = memory.quantized_base == "None" and not (training.lora and training.lora.dora)
    streamable = accelerator and asked != "Off" and plain
    steps: tuple[tuple[Change, bool], ...] = (
        ("checkpointing", asked != "Off"),
        ("released", memory.allow_offload),
        ("8bit", memory.allow_8bit_optimizer and has_8bit and training.optimizer == "AdamW"),
        ("fused", full and not scaled and can_fuse(training)),
        ("streamed", memory.allow_offload and streamable),
        ("lora", memory.allow_lora and full and training.ema is None),
    )
    rungs = [Profile()]
    for change, permitted in steps:
        if permitted:
            rungs.append(Profile((*rungs[-1].changes, change)))
    return tuple(rungs[1:] if asked == "On" else rungs)


def can_fuse(training: Training) -> bool:
    """Whether weights can be updated one by one within a backward pass: not when gradients of
    several passes make an update, nor by Prodigy, which estimates over all weights together, nor
    where compiled code hands all gradients over at its end."""
    return (
        training.gradient_accumulation == 1
        and training.optimizer != "Prodigy"
        and not training.compile
    )


def first_that_fits(
    rungs: tuple[Profile, ...], needs: tuple[int, ...], *, free_bytes: int
) -> Profile:
    """The first profile whose need fits into the free memory; the last one when none does."""
    for profile, need in zip(rungs, needs, strict=True):
        if need <= SHARE_OF_FREE_MEMORY * free_bytes:
            return profile
    return rungs[-1]


def lower(rungs: tuple[Profile, ...], present: Profile) -> Profile | None:
    """One rung down."""
    place = rungs.index(present) + 1
    return rungs[place] if place < len(rungs) else None


def need_bytes(
    profile: Profile,
    sizes: Sizes,
    *,
    training: Training,
    learns_text: bool,
    learns_denoiser: bool,
    frozen_bytes: int = 4,
    half: bool = False,
) -> int:
    """Memory of one update on the device that computes.

    `frozen_bytes` is the size of a weight that is not trained; `half` tells whether forward passes
    are in half precision while weights are kept in float32. Counted are weights, gradients,
    optimizer state, the average, copies of weights in half precision, and activations.
    """
    training = profile.applied(training)
    full = training.method == "Full"
    quantized = QUANTIZED_BYTES.get(training.memory.quantized_base)
    weights, trained = 0.0, 0.0
    for size, learns, small in (
        (sizes.denoiser, learns_denoiser, quantized),
        (sizes.text_encoder, learns_text, None),
    ):
        own = full and learns
        each = small or (4.0 if own else float(frozen_bytes))
        weights += size * each
        # Autocast keeps a half copy of every float32 weight until the backward pass is over.
        weights += 2 * size if half and each == 4 else 0
        if learns:
            trained += size if own else size * _low_rank_share(training, sizes.width)
    if not profile.has("released"):
        weights += sizes.resting * frozen_bytes + sizes.vae * 4
    gradients = 4.0 * (SHARE_OF_VISITORS if full and profile.has("fused") else 1)
    updates = trained * (gradients + OPTIMIZER_BYTES[training.optimizer])
    if training.ema is not None and learns_denoiser and sizes.denoiser <= GIB:
        updates += 4 * sizes.denoiser
    if profile.has("streamed"):
        # Weights, gradients and state wait in the host's memory; a few layers visit.
        weights, updates = weights * SHARE_OF_VISITORS, 0.0
    kept = sizes.recomputed_bytes if profile.has("checkpointing") else sizes.kept_bytes
    return int(weights + updates + kept)


def _low_rank_share(training: Training, width: int) -> float:
    """Weights of a low-rank update for each weight of the base, at most."""
    rank = training.lora.rank if training.lora else 16
    return min(1.0, 2 * rank / max(width, 1))


def cure(training: Training, rungs: tuple[Profile, ...], present: Profile) -> str:
    """Which fields a person may set when the ladder has ended, the mildest first."""
    memory = training.memory
    told: list[str] = []
    if training.gradient_checkpointing == "Off":
        told.append("training.gradientCheckpointing: Auto")
    if not memory.fallback and present != rungs[-1]:
        told.append("training.memory.fallback: true")
    for field, wanted in (
        ("allowOffload", not memory.allow_offload),
        ("allow8BitOptimizer", not memory.allow_8bit_optimizer and training.optimizer == "AdamW"),
        ("allowLora", not memory.allow_lora and training.method == "Full"),
    ):
        if wanted:
            told.append(f"training.memory.{field}: true")
    if training.method == "LoRA" and memory.quantized_base == "None":
        told.append("training.memory.quantizedBase (Flux)")
    ways = f"set {', '.join(told)}; or " if told else ""
    return (
        f"{ways}lower training.batchSize or training.resolution, or ask for more memory in"
        " runtime.resources"
    )


def as_json(profile: Profile, *, why: str) -> dict[str, Any]:
    """What the store remembers of the rung that a run had to go down to."""
    return {"version": 1, "changes": list(profile.changes), "why": why}


def remembered(value: Any, rungs: tuple[Profile, ...]) -> Profile | None:
    """The rung that the store remembers, if these settings still permit it."""
    told = value.get("changes") if isinstance(value, dict) else None
    if not isinstance(told, list):
        return None
    return next((rung for rung in rungs if list(rung.changes) == told), None)


def joined(profile: Profile, least: Profile | None, rungs: tuple[Profile, ...]) -> Profile:
    """The lower of two rungs."""
    if least is None:
        return profile
    return rungs[max(rungs.index(profile), rungs.index(least))]
