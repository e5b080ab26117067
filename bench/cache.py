"""Latents cached per CPU-second against a plain loop over diffusers' VAE; what a second run saves.

The plain loop is what training scripts do with `--cache_latents`: open a picture, encode it by
itself, keep the distribution in memory. Ours verifies, writes and publishes it besides.
Both encode the same PNGs with one VAE of Stable Diffusion's full size and random weights, in turns;
the median of each counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from kubebooth_store import open_store
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.families.sd import load
from kubebooth_trainer.train.cache import Cache
from kubebooth_trainer.train.dataset import Picture, uncut
from kubebooth_trainer.train.latents import examples, vae_identity
from PIL import Image

from bench.report import report
from tests.tiny.pipeline import tiny_pipeline

LEAST_SPEED, LEAST_SAVING = 0.95, 0.95
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def main() -> int:
    """Measure in turns and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--edge", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kubebooth-bench-") as name:
        folder = Path(name)
        pictures = written(folder / "pictures", arguments.pictures, arguments.edge)
        model = model_in(folder / "base")
        plain: list[float] = []
        first: list[float] = []
        second: list[float] = []
        for pair in range(arguments.pairs + 1):
            times = (
                looped(model, pictures),
                cached(model, pictures, folder),
                cached(model, pictures, folder),
            )
            shutil.rmtree(folder / "store")
            if pair:  # the first pair only warms up
                for kept, taken_s in zip((plain, first, second), times, strict=True):
                    kept.append(taken_s)
                print("  ".join(f"{taken_s:.2f} s" for taken_s in times), flush=True)
    loop_s, first_s, second_s = (statistics.median(times) for times in (plain, first, second))
    count, saving = arguments.pictures, 1 - second_s / first_s
    return report(
        bench="cache",
        value=loop_s / first_s,
        unit="times a plain loop's latents per CPU-second, published in the store besides",
        against=(
            f"plain loop: {count / loop_s:.2f} latents/CPU-s; ours: {count / first_s:.2f}; second"
            f" run: {count / second_s:.0f}, which saves {saving:.1%} of the time"
        ),
        goal=f">= {LEAST_SPEED}, and >= {LEAST_SAVING:.0%} saved by a second run",
        ok=loop_s / first_s >= LEAST_SPEED and saving >= LEAST_SAVING,
    )


def written(folder: Path, count: int, edge: int) -> list[Picture]:
    """Noisy pictures, which PNG compresses as badly as photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (edge, edge, 3), dtype=np.uint8)).save(path)
        found.append(Picture(path, "a sks square", path.name, uncut((edge, edge))))
    return found


def model_in(folder: Path) -> Any:
    """A base model whose VAE is as large as the real one."""
    pipe = tiny_pipeline()
    torch.manual_seed(0)
    pipe.vae = AutoencoderKL(**VAE)
    pipe.save_pretrained(folder)
    placement = Placement(torch.device("cpu"), None)
    return load(folder, placement=placement, zero_terminal_snr=False, trained=frozenset())


@torch.no_grad()
def looped(model: Any, pictures: list[Picture]) -> float:
    """CPU seconds of the loop that scripts have."""
    began, kept = time.process_time(), []
    for picture in pictures:
        image = Image.open(picture.path).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        kept.append(model._vae.encode(pixels.unsqueeze(0)).latent_dist)
    return time.process_time() - began


def cached(model: Any, pictures: list[Picture], folder: Path) -> float:
    """CPU seconds of our way, with what the store has by now."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    store = open_store((folder / "store").as_uri())
    store.create_root()
    began = time.process_time()
    cache = Cache(
        store,
        session_prefix="sessions/bench/one",
        folder=folder / "scratch",
        identity=vae_identity({"vae/weights": "0" * 64}),
    )
    examples(model, pictures, cache=cache, stop=threading.Event())
    return time.process_time() - began


if __name__ == "__main__":
    raise SystemExit(main())
