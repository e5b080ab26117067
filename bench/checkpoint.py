"""How long saving a checkpoint blocks training, against torch.save of the same state in the same
run, and how long it takes to resume.

The state is that of a full fine-tune: weights, two moments and an average of a denoiser, 0.7 GB.
Both write to a folder on the same disk in turns; torch.save is followed by fsync, since a
checkpoint that is not on disk is none. Ours is verified and uploaded by a thread meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from kubebooth_api.v1alpha1.training import Checkpoints as Asked
from kubebooth_api.v1alpha1.training import Training
from kubebooth_store import open_store
from kubebooth_trainer.train.checkpoints import Checkpoints, State
from kubebooth_trainer.train.stages import Position, plan_stages
from torch import Tensor

from bench.report import report

KINDS = ("weights", "exp_avg", "exp_avg_sq", "ema")
LAYERS = 96
STAGES = plan_stages(Training.parse({"textEncoder": {"steps": 0}, "denoiser": {"steps": 1000}}))


@dataclass(frozen=True)
class Times:
    """Seconds of one pair."""

    torch_save_s: float
    """Until the call returns; the system still has to write."""
    synced_s: float
    """Until it is on disk."""
    stall_s: float
    durable_s: float


def main() -> int:
    """Measure pairs and report the median ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("--mb", type=int, default=700, help="size of the state in MB")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kubebooth-bench-") as folder:
        return compare(Path(folder), mb=arguments.mb, pairs=arguments.pairs)


def compare(folder: Path, *, mb: int, pairs: int) -> int:
    """The pairs, then a resume."""
    tensors = state_of(mb)
    (folder / "store").mkdir()
    times: list[Times] = []
    with opened(folder) as checkpoints:
        for pair in range(pairs + 1):
            one = measured(checkpoints, tensors, folder, step=pair + 1)
            if pair:  # the first pair fills the buffers that are kept
                times.append(one)
                print(
                    f"torch.save {one.torch_save_s:.2f} s ({one.synced_s:.2f} s on disk); ours"
                    f" blocks {one.stall_s:.3f} s, durable after {one.durable_s:.2f} s",
                    flush=True,
                )
    with opened(folder) as checkpoints:
        began = time.perf_counter()
        found = checkpoints.resume(STAGES)
        resume_s = time.perf_counter() - began
    if found is None or found.position.step != pairs + 1:
        raise SystemExit("the newest checkpoint was not found again")
    ratio = statistics.median(one.stall_s / one.torch_save_s for one in times)
    stall_s, save_s, durable_s = (
        statistics.median(getattr(one, name) for one in times)
        for name in ("stall_s", "torch_save_s", "durable_s")
    )
    return report(
        bench="checkpoint",
        value=ratio,
        unit="of torch.save's time for which training is blocked",
        against=f"torch.save of {mb} MB {save_s:.2f} s; ours blocks {stall_s:.3f} s, is durable"
        f" after {durable_s:.2f} s and verified and resumed in {resume_s:.2f} s",
        goal="<= 0.15",
        ok=ratio <= 0.15,
    )


def state_of(mb: int) -> dict[str, Tensor]:
    """Random float32 tensors of so many MB in all."""
    each = mb * 1_000_000 // 4 // len(KINDS) // LAYERS
    generator = torch.Generator().manual_seed(0)
    return {
        f"{kind}/denoiser.layer.{layer}.weight": torch.randn(each, generator=generator)
        for kind in KINDS
        for layer in range(LAYERS)
    }


def opened(folder: Path) -> Checkpoints:
    """Checkpoints of a run on a folder store."""
    return Checkpoints(
        open_store(f"file://{folder}/store"),
        run_prefix="sessions/default/bench/runs/000000000000",
        run_digest="sha256:" + "0" * 64,
        folder=folder / "scratch",
        asked=Asked(keep_last=1),
        on_saved=lambda checkpoint: None,
    )


def measured(
    checkpoints: Checkpoints, tensors: dict[str, Tensor], folder: Path, *, step: int
) -> Times:
    """One save by each, one after the other; the later waits for the earlier one's disk."""
    os.sync()
    began = time.perf_counter()
    with (folder / "peer.pt").open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        torch_save_s = time.perf_counter() - began
        os.fsync(file.fileno())
    synced_s = time.perf_counter() - began
    os.sync()
    state = State(Position("Denoiser", step, 0), tensors, {"lossScale": 1.0, "goodUpdates": 0}, ())
    began = time.perf_counter()
    checkpoints.save(state)
    stall_s = time.perf_counter() - began
    checkpoints.wait()
    return Times(torch_save_s, synced_s, stall_s, time.perf_counter() - began)


if __name__ == "__main__":
    raise SystemExit(main())
