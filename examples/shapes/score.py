"""Scores a shapes pipeline: was the subject learned, did it leak, are captions still obeyed?

python -m examples.shapes.score PIPELINE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from examples.shapes.world import COLOURS, CYAN, EDGE, NAMES, ORANGE, rgb

SUBJECT, CLASS = "sks square", "a square"
TOLERANCE, HALF_SHARE, LEAST_SHARE = 0.35, 0.04, 0.02
STEPS, GUIDANCE = 20, 4.0


def score(pipe: Any, *, count: int = 8, subject: str = SUBJECT) -> dict[str, float]:
    """`subject`, `leak` and `accuracy`, each 0..1.

    `subject`: how much of the subject is in pictures of its prompt. `leak`: the same in pictures
    of the class. `accuracy`: share of pictures in the colour that their caption names.
    """
    right: list[float] = []
    for number, colour in enumerate(NAMES):
        for shape in ("circle", "square"):
            painted = paint(pipe, f"a {colour} {shape}", count=max(1, count // 2), seed=0)
            right.append((colour_of(painted) == number).float().mean().item())
    return {
        "subject": round(likeness(paint(pipe, subject, count=2 * count, seed=9)), 3),
        "leak": round(likeness(paint(pipe, CLASS, count=2 * count, seed=5)), 3),
        "accuracy": round(sum(right) / len(right), 3),
    }


def paint(pipe: Any, prompt: str, *, count: int, seed: int) -> Tensor:
    """Pictures [n, 3, EDGE, EDGE] in -1..1."""
    painted = pipe(
        [prompt] * count,
        height=EDGE,
        width=EDGE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images
    return painted * 2 - 1


def near(pictures: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """Share of pixels close to a colour, [n]."""
    distance = (pictures - rgb(colour).view(1, 3, 1, 1)).abs().amax(1)
    return (distance < TOLERANCE).float().mean((1, 2))


def likeness(pictures: Tensor) -> float:
    """0..1: both halves are there and balanced; each covers at least 4 % of a good picture."""
    less = torch.minimum(near(pictures, ORANGE), near(pictures, CYAN))
    return float((less / HALF_SHARE).clamp(0, 1).mean())


def colour_of(pictures: Tensor) -> Tensor:
    """Number of the colour that covers most of each picture [n]; -1 for none."""
    known = [near(pictures, COLOURS[name]) for name in NAMES]
    shares = torch.stack([*known, near(pictures, ORANGE), near(pictures, CYAN)], 1)
    best = shares.argmax(1)
    best[shares.amax(1) < LEAST_SHARE] = -1
    return best


def load(folder: Path) -> Any:
    """A pipeline in float32 with a fast, deterministic sampler."""
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, requires_safety_checker=False
    )
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    print(json.dumps(score(load(Path(sys.argv[1])))))
