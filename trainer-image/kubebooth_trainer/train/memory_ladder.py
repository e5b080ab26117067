"""Goes down the ladder of memory profiles: an attempt that runs out of memory is made again with
less, from the newest checkpoint. It must not know what an attempt does."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from kubebooth_api.runs import TrainRun
from kubebooth_store import NotFound, Store

from kubebooth_trainer.errors import OutOfMemory
from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.train import memory_sizes
from kubebooth_trainer.train.device import place, precision_of
from kubebooth_trainer.train.memory import (
    Profile,
    as_json,
    cure,
    first_that_fits,
    joined,
    ladder,
    lower,
    need_bytes,
    remembered,
)
from kubebooth_trainer.train.memory_streaming import stream
from kubebooth_trainer.train.stages import Stage, trained_parts

T = TypeVar("T")
COMPILER = "inductor"
"""What torch.compile makes code with."""
HOST = torch.device("cpu")
RECORD, MOST_BYTES = "memory.json", 64 << 10
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """How one attempt trains."""

    run: TrainRun
    """The run with the settings that the profile makes of it; its digest stays."""
    placement: Placement
    profile: Profile
    apart: str
    """What is put behind the run's place in the store for checkpoints that fit no other rung."""

    @property
    def told(self) -> str:
        """Name of the profile, such as `cuda-bf16-checkpointing-released`."""
        return self.profile.told(
            device=self.placement.device.type, precision=precision_of(self.placement)
        )

    @property
    def fused(self) -> bool:
        """Whether updates are made within the backward pass; a low-rank update is too small."""
        return self.profile.has("fused") and self.run.training.method == "Full"

    def prepare(self, model: Model) -> None:
        """Set the loaded model up for painting and encoding."""
        model.save_memory(self.profile.has("checkpointing"))
        if self.profile.has("streamed"):
            stream(model.parts["denoiser"], device=self.placement.device)

    def ready(self, model: Model) -> None:
        """Set it up for training, when a low-rank update, if any, is in it."""
        denoiser = model.parts["denoiser"]
        if self.profile.has("streamed"):
            stream(denoiser, device=self.placement.device)
        elif self.run.training.compile:
            denoiser.compile(backend=COMPILER)

    def make_room(self, model: Model) -> None:
        """Free what updates do not read; called before they begin and after pictures."""
        if self.profile.has("released"):
            model.release()


class Descent:
    """The ladder of one run, and the rung it stands on."""

    def __init__(self, run: TrainRun, *, store: Store, run_prefix: str) -> None:
        """Raises `ConfigurationError` for a precision that this machine does not have."""
        self._run, self._store, self._prefix = run, store, run_prefix
        placement = place(run.training)
        self._rungs = ladder(
            run.training,
            accelerator=placement.device.type != "cpu",
            has_8bit=importlib.util.find_spec("bitsandbytes") is not None,
            scaled=placement.autocast == torch.float16,
        )
        self._present: Profile | None = None

    def choose(self, folder: Path, stages: tuple[Stage, ...]) -> Chosen:
        """The rung to try: at first the first that fits by the estimate for the base model in
        `folder`, but none above what an earlier attempt had to go down to.

        Raises `DataError` when the base model's files cannot be read.
        """
        if self._present is None:
            earlier = recalled(self._store, self._prefix, self._rungs)
            self._present = joined(self._estimated(folder, stages), earlier, self._rungs)
        profile = self._present
        training = profile.applied(self._run.training)
        return Chosen(
            self._run.model_copy(update={"training": training}),
            replace(place(training), waiting=HOST if profile.has("streamed") else None),
            profile,
            "/lora" if profile.has("lora") else "",
        )

    def _estimated(self, folder: Path, stages: tuple[Stage, ...]) -> Profile:
        training, resolution = self._run.training, self._run.resolution
        placement, parts = place(training), trained_parts(stages)
        half = placement.autocast is not None
        sizes = memory_sizes.sizes_of(
            folder,
            self._run.variant,
            samples=training.batch_size * (2 if training.prior_preservation else 1),
            size=(resolution, resolution),
            half=half,
        )
        needs = tuple(
            need_bytes(
                rung,
                sizes,
                training=training,
                learns_text="textEncoder" in parts,
                learns_denoiser="denoiser" in parts,
                frozen_bytes=place(rung.applied(training)).frozen.itemsize,
                half=half,
            )
            for rung in self._rungs
        )
        free = memory_sizes.free_bytes(placement.device)
        chosen = first_that_fits(self._rungs, needs, free_bytes=free)
        need = needs[self._rungs.index(chosen)]
        log.info(
            "memory: %.1f of %.1f GiB free are needed with %s given up",
            need / 2**30, free / 2**30, ", ".join(chosen.changes) or "nothing",
        )  # fmt: skip
        return chosen

    def descend(self, attempt: Callable[[], T]) -> T:
        """What the first attempt gives that does not run out of memory.

        Raises `OutOfMemory` that names the fields that may help when the ladder ends, or its use
        is not permitted.
        """
        while True:
            try:
                return attempt()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                why = " ".join(str(error).split())[:200] or type(error).__name__
                # Frames of the attempt hold the model; nothing is freed while they live.
                traceback.clear_frames(error.__traceback__)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._lower(why)

    def _lower(self, why: str) -> None:
        present = self._present or self._rungs[0]
        training = self._run.training
        below = lower(self._rungs, present) if training.memory.fallback else None
        if below is None:
            raise OutOfMemory(
                f"out of memory at {self._run.resolution} px and batch {training.batch_size}, with"
                f" {', '.join(present.changes) or 'nothing'} given up ({why});"
                f" {cure(training, self._rungs, present)}"
            )
        log.warning("Updated profile: out of memory, now %s as well (%s)", below.changes[-1], why)
        data = json.dumps(as_json(below, why=why), sort_keys=True).encode()
        self._store.write(f"{self._prefix}/{RECORD}", data, content_type="application/json")
        self._present = below


def is_out_of_memory(error: BaseException) -> bool:
    """An accelerator has an error of its own for it; a host's allocator only has words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def recalled(store: Store, run_prefix: str, rungs: tuple[Profile, ...]) -> Profile | None:
    """The rung that an earlier attempt had to go down to."""
    try:
        return remembered(
            json.loads(store.read(f"{run_prefix}/{RECORD}", max_bytes=MOST_BYTES)), rungs
        )
    except (NotFound, ValueError):
        return None
