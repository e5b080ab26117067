"""Makes what stands here: the base model, by training it from nothing, and the subject's pictures.

python -m examples.shapes.make base FOLDER [--steps 2600]    about 17 CPU minutes
python -m examples.shapes.make subject FOLDER
python -m examples.shapes.make half PIPELINE FOLDER          any pipeline, in fp16
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from examples.shapes import pipeline, world

BATCH, POOL, PEAK_RATE, GAMMA = 16, 4000, 1.5e-3, 5.0


def train_base(steps: int) -> StableDiffusionPipeline:
    """Train UNet and text encoder from random weights; the second half is averaged."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    vae, tokens, unet = pipeline.vae(), pipeline.tokenizer(), pipeline.unet()
    text = pipeline.text_encoder(tokens)
    latents, shapes, colours = _encoded(vae, random)
    ids = tokens(
        list(world.CAPTIONS), padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    noises = DDPMScheduler(**pipeline.SCHEDULE, clip_sample=False, steps_offset=1)
    weights = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=0.05
    )
    average: list[Tensor] = []
    for step in range(steps):
        chosen = torch.randint(0, len(latents), (BATCH,), generator=random)
        captions = world.captions_of(shapes[chosen], colours[chosen], random)
        distinct, places = torch.unique(captions, return_inverse=True)
        loss = _loss(unet, noises, latents[chosen], text(ids[distinct])[0][places], random)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rates.step()
        if step == steps // 2:
            average = [weight.detach().clone() for weight in weights]
        for kept, weight in zip(average, weights, strict=False):
            kept.lerp_(weight.detach(), 0.01)
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.4f}", flush=True)
    for weight, kept in zip(weights, average, strict=True):
        weight.data.copy_(kept)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokens,
        unet=unet.eval(),
        scheduler=pipeline.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _encoded(vae: Any, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    latents, shapes, colours = [], [], []
    with torch.no_grad():
        for _ in range(POOL // 100):
            pictures, shape, colour = world.examples(100, random)
            latents.append(vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor)
            shapes.append(shape)
            colours.append(colour)
    return torch.cat(latents), torch.cat(shapes), torch.cat(colours)


def _loss(unet: Any, noises: Any, x0: Tensor, text: Tensor, random: torch.Generator) -> Tensor:
    """Noise prediction with min-SNR weights."""
    timesteps = torch.randint(0, 1000, (len(x0),), generator=random)
    noise = torch.randn(x0.shape, generator=random)
    said = unet(noises.add_noise(x0, noise, timesteps), timesteps, text).sample
    a = noises.alphas_cumprod[timesteps]
    snr = a / (1 - a)
    weights = (snr.clamp(max=GAMMA) / snr).view(-1, 1, 1, 1)
    return ((said - noise) ** 2 * weights).mean()


def write_half(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in fp16 with keys and tokenizer files that every reader knows."""
    pipe.to(torch.float16).save_pretrained(folder)
    text = {
        (key if key.startswith("text_model.") else f"text_model.{key}"): tensor.contiguous()
        for key, tensor in pipe.text_encoder.state_dict().items()
    }
    save_file(text, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    _forget_origin(folder)
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "tokenizer" / "vocab.json").write_text(vocabulary, "utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges, ""]), "utf-8"
    )


def _forget_origin(folder: Path) -> None:
    """Take out what tells of the machine that made a pipeline, and what only loading wrote."""
    for path in [folder / "model_index.json", *folder.glob("*/*config.json")]:
        told = json.loads(path.read_text("utf-8"))
        for key in ("_name_or_path", "is_local", "local_files_only"):
            told.pop(key, None)
        path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")


def write_subject(folder: Path) -> None:
    """Write the subject's pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(world.subject(), start=1):
        levels = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(levels))
        image.save(folder / f"subject-{number}.png", optimize=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("base", "subject", "half"))
    parser.add_argument("path", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=2600)
    asked = parser.parse_args()
    if asked.what == "base":
        write_half(train_base(asked.steps), asked.path)
    elif asked.what == "subject":
        write_subject(asked.path)
    else:
        if asked.target is None:
            parser.error("half needs the folder to write to")
        write_half(StableDiffusionPipeline.from_pretrained(asked.path), asked.target)


if __name__ == "__main__":
    main()
