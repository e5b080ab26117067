"""Updates per CPU-second and peak memory of a whole training, against the logic of diffusers'
train_dreambooth.py on the same tiny model, pictures and machine in one run.

Both train the text encoder and the UNet together, batch 1, AdamW, float32, clipping, constant
learning rate. The peer does in each update what the script does: it opens and crops a picture,
tokenizes its prompt, runs VAE and text encoder, all through accelerate. Every measurement is a
fresh process; the cost of an update is the difference of a long and a short training, so that
imports, loading, and our samples and publishing do not count. Sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report import report
from bench.store import peak_rss_mib

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ROOT / "examples" / "shapes"
EDGES, SHORT, RATE = {"tiny": 64, "shapes": 128}, 10, 1e-6
PROMPT = "a sks square"


def main() -> int:
    """Run the pairs and report; with `--side`, be one of the measured processes."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=110, help="updates of the long training")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--model",
        choices=sorted(EDGES),
        default="tiny",
        help="tiny: every part of SD1.5 at its smallest, 64 px; shapes: the examples' UNet of"
        " 2.7 M weights with a VAE that computes next to nothing, 128 px",
    )
    parser.add_argument("--side", choices=["kubebooth", "diffusers"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side = train_kubebooth if arguments.side == "kubebooth" else train_diffusers
        side(arguments.folder, arguments.steps, arguments.model)
        print(json.dumps({"cpu_s": time.process_time(), "rss_mib": peak_rss_mib()}))
        return 0
    return compare(arguments.model, steps=arguments.steps, pairs=arguments.pairs)


def compare(model: str, *, steps: int, pairs: int) -> int:
    """Measure both sides in turns; medians of the ratios of the pairs."""
    ratios, rows = [], []
    for pair in range(pairs):
        row: dict[str, tuple[float, float]] = {}
        for side in sorted(("kubebooth", "diffusers"), reverse=pair % 2 == 1):
            short, long = (measured(side, model, count) for count in (SHORT, steps))
            spent_s = max(long["cpu_s"] - short["cpu_s"], 1e-6)
            row[side] = (steps - SHORT) / spent_s, long["rss_mib"]
            print(f"{side:10} {row[side][0]:.2f} updates/CPU-s  {row[side][1]:.0f} MiB", flush=True)
        rows.append(row)
        ratios.append(row["kubebooth"][0] / row["diffusers"][0])
    told = {
        side: tuple(statistics.median(row[side][part] for row in rows) for part in (0, 1))
        for side in ("kubebooth", "diffusers")
    }
    ratio = statistics.median(ratios)
    memory = told["kubebooth"][1] / told["diffusers"][1]
    words = [f"{side} {v[0]:.2f} updates/CPU-s, {v[1]:.0f} MiB" for side, v in told.items()]
    return report(
        bench="train",
        value=ratio,
        unit=f"times the updates per CPU-second of train_dreambooth.py's logic, {model} model",
        against=f"{'; '.join(words)}; peak memory {memory:.2f}x",
        goal=">= 1.5",
        ok=ratio >= 1.5,
    )


def measured(side: str, model: str, steps: int) -> dict[str, float]:
    """CPU seconds and peak memory of one training in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="kubebooth-bench-") as folder:
        words = ["--side", side, "--model", model, "--steps", str(steps), "--folder", folder]
        done = subprocess.run(
            [sys.executable, "-m", "bench.train", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-2000:]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def base_of(model: str, folder: Path) -> Path:
    """The base model as a Diffusers layout."""
    if model == "shapes":
        return SHAPES / "base"
    from tests.tiny.models import write_model

    return write_model(folder / "base", "sd15")


def pictures() -> list[Path]:
    """The subject's pictures."""
    return sorted((SHAPES / "subject").glob("*.png"))


def train_kubebooth(folder: Path, steps: int, model: str) -> None:
    """Our trainer from store to store."""
    from tests.tiny.folder_session import folder_session

    session = folder_session(
        folder / "store", base=base_of(model, folder), pictures=pictures(), resolution=EDGES[model]
    )
    session.train(
        session.run(
            {
                "textEncoder": {"steps": steps, "learningRate": RATE, "mode": "Joint",
                                "lrScheduler": "Constant"},
                "denoiser": {"steps": steps, "learningRate": RATE, "lrScheduler": "Constant"},
            },
            samples={"everySteps": 0, "imagesPerPrompt": 1, "inferenceSteps": 1},
        )
    )  # fmt: skip


def train_diffusers(folder: Path, steps: int, model: str) -> None:
    """The loop of train_dreambooth.py with --train_text_encoder, without a web UI's trackers."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from torch.nn import functional
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, CLIPTextModel

    accelerator = Accelerator(gradient_accumulation_steps=1, mixed_precision="no")
    set_seed(0)
    base = base_of(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer", use_fast=False)
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    text_encoder: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder").float()
    vae: Any = AutoencoderKL.from_pretrained(base, subfolder="vae").float().requires_grad_(False)
    unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet").float()
    optimizer = torch.optim.AdamW([*unet.parameters(), *text_encoder.parameters()], lr=RATE)
    examples: Any = _Pictures(tokenizer, EDGES[model])
    loader: Any = DataLoader(
        examples, batch_size=1, shuffle=True, collate_fn=_collated, num_workers=0
    )
    rates = get_scheduler("constant", optimizer=optimizer)
    unet, text_encoder, optimizer, loader, rates = accelerator.prepare(
        unet, text_encoder, optimizer, loader, rates
    )
    unet.train()
    text_encoder.train()
    for batch in _endless(loader, steps):
        with accelerator.accumulate(unet):
            latents = vae.encode(batch["pixel_values"].to(torch.float32)).latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                0, scheduler.config.num_train_timesteps, (latents.shape[0],)
            ).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            hidden = text_encoder(batch["input_ids"], return_dict=False)[0]
            predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
            loss = functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                both = [*unet.parameters(), *text_encoder.parameters()]
                accelerator.clip_grad_norm_(both, 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad(set_to_none=True)
        loss.detach().item()
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")


class _Pictures:
    """Opens, resizes, crops and normalizes a picture, and tokenizes its prompt, each time."""

    def __init__(self, tokenizer: Any, edge: int) -> None:
        self._paths, self._tokenizer, self._edge = pictures(), tokenizer, edge

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> dict[str, Any]:
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        picture = ImageOps.exif_transpose(Image.open(self._paths[place])).convert("RGB")
        edge = self._edge
        scale = edge / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        picture = picture.crop((left, top, left + edge, top + edge))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        words = self._tokenizer(
            PROMPT, truncation=True, padding="max_length", max_length=77, return_tensors="pt"
        )
        return {"pixels": (pixels - 0.5) / 0.5, "ids": words.input_ids}


def _collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {
        "input_ids": torch.cat([example["ids"] for example in examples]),
        "pixel_values": torch.stack([example["pixels"] for example in examples]).contiguous(),
    }


def _endless(loader: Any, steps: int) -> Iterator[Any]:
    done = 0
    while True:
        for batch in loader:
            if done == steps:
                return
            done += 1
            yield batch


if __name__ == "__main__":
    raise SystemExit(main())
