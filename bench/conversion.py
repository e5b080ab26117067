"""Speed and memory of the converter against `cp`, Diffusers and plain transfers in one run.

A Stable Diffusion 1.5 of full size with random weights in fp16 (2.1 GB) is made in a temporary
folder and removed. Every measurement is a fresh process, start-up included; the tools take turns
and the median counts. Two kinds of our own runs are told apart: the copy alone (`--no-verify
--no-sync`), which is what `cp` does, and the default, which also waits for the disk and reads
everything again to prove it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubebooth_cluster.weed import Weed

from bench.report import report

BUCKET = "bench"
OURS = """
import sys
from kubebooth_trainer.__main__ import main
code = main(sys.argv[1:])
line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print("peak", int(line.split()[1]) // 1024)
sys.exit(code)
"""
THEIRS = """
import sys
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_single_file(
    sys.argv[1], config=sys.argv[2], torch_dtype=torch.float16, local_files_only=True,
    safety_checker=None)
pipeline.save_pretrained(sys.argv[3])
line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print("peak", int(line.split()[1]) // 1024)
"""
BARE = ("--no-verify", "--no-sync")
GOALS = {
    "safetensors": ("wall against cp", "<=", 1.15),
    "ckpt": ("wall against cp", "<=", 1.6),
    "layout": ("times faster than Diffusers", ">=", 3.0),
    "memory": ("peak MiB on disk", "<=", 64.0),
    "store": ("speed against the slower of plain upload and download", ">=", 0.8),
}


@dataclass
class Times:
    """Seconds and peak MiB of one tool's runs."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        """Largest peak in MiB."""
        return max(self.peak_mib, default=0.0)


def main() -> int:
    """Measure, print a line for each figure, and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.conversion", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--skip", nargs="*", default=(), choices=("diffusers", "flux", "store"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kubebooth-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        make_sd15(folder / "model")
        figures = on_disk(folder, rounds=arguments.rounds)
        if "diffusers" not in arguments.skip:
            figures |= against_diffusers(folder, rounds=max(1, arguments.rounds // 2))
        if "flux" not in arguments.skip:
            figures["memory"] = max(figures["memory"], flux_peak(folder))
        if "store" not in arguments.skip:
            figures |= through_a_store(folder, rounds=max(1, arguments.rounds // 2))
    return tell(figures)


def make_sd15(folder: Path) -> None:
    """Write the Diffusers layout of Stable Diffusion 1.5 with random weights in fp16."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, max_position_embeddings=77, projection_dim=768,
        )  # fmt: skip
        text = CLIPTextModel(config)
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    for name, module in parts.items():
        place = folder / name
        place.mkdir(parents=True)
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_random(place / f"{stem}.safetensors", shapes)
        if name == "text_encoder":
            config.save_pretrained(place)
        else:
            module.save_config(place)
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    }  # fmt: skip
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "PNDMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def write_random(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, sparse: bool = False
) -> None:
    """A safetensors file of fp16 tensors; random, or of nothing but a hole."""
    rows: dict[str, Any] = {}
    position = 0
    for name, shape in sorted(shapes.items()):
        size = 2
        for edge in shape:
            size *= edge
        rows[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(rows).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        if sparse:
            file.truncate(8 + len(header) + position)
            return
        for block in finite_blocks(position):
            file.write(block)


def finite_blocks(size: int) -> Iterator[bytes]:
    """Random fp16 values without NaN and infinity."""
    import numpy as np

    random = np.random.default_rng(1)
    while size:
        count = min(size, 32 << 20)
        bits = random.integers(0, 1 << 16, count // 2, dtype=np.uint16)
        yield (bits & np.uint16(0xBFFF)).tobytes()
        size -= count


def on_disk(folder: Path, *, rounds: int) -> dict[str, float]:
    """Both single-file forms against `cp` of the same bytes."""
    source, target = folder / "model", folder / "target"
    tools: dict[str, Callable[[], tuple[float, float]]] = {
        "cp": lambda: timed(["cp", "-r", str(source), str(target)]),
        "cp and sync": lambda: timed(
            ["bash", "-c", 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} +',
             str(source), str(target)]
        ),
        "safetensors": lambda: ours(source, target, "safetensors", *BARE),
        "safetensors, proven": lambda: ours(source, target, "safetensors"),
        "ckpt": lambda: ours(source, target, "ckpt", *BARE),
        "ckpt, proven": lambda: ours(source, target, "ckpt"),
    }  # fmt: skip
    times = in_turns(tools, target, rounds=rounds)
    figures = {
        "safetensors": times["safetensors"].middle / times["cp"].middle,
        "ckpt": times["ckpt"].middle / times["cp"].middle,
        "safetensors, proven": times["safetensors, proven"].middle / times["cp and sync"].middle,
        "ckpt, proven": times["ckpt, proven"].middle / times["cp and sync"].middle,
        "memory": max(row.peak for row in times.values()),
    }
    clear(target)
    return figures


def against_diffusers(folder: Path, *, rounds: int) -> dict[str, float]:
    """A single file to the Diffusers layout, by us and by Diffusers."""
    single, target, layout = folder / "single.safetensors", folder / "target", folder / "layout"
    ours(folder / "model", single, "safetensors", *BARE)
    ours(single, layout, "diffusers", *BARE)
    tools: dict[str, Callable[[], tuple[float, float]]] = {
        "diffusers": lambda: timed(
            [sys.executable, "-c", THEIRS, str(single), str(layout), str(target)]
        ),
        "layout": lambda: ours(single, target, "diffusers", *BARE),
        "layout, proven": lambda: ours(single, target, "diffusers"),
    }
    times = in_turns(tools, target, rounds=rounds)
    clear(single)
    clear(layout)
    return {
        "layout": times["diffusers"].middle / times["layout"].middle,
        "layout, proven": times["diffusers"].middle / times["layout, proven"].middle,
        "memory of diffusers": times["diffusers"].peak,
    }


def flux_peak(folder: Path) -> float:
    """Peak MiB for a model of the size of Flux, made of holes."""
    import diffusers
    import torch

    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    place = folder / "flux" / "transformer"
    place.mkdir(parents=True)
    write_random(place / "diffusion_pytorch_model.safetensors", shapes, sparse=True)
    model.save_config(place)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (place.parent / "model_index.json").write_text(json.dumps(index))
    target = folder / "target"
    peaks = []
    for form in ("safetensors", "ckpt"):
        seconds, peak = ours(place.parent, target, form, *BARE)
        size = sum(path.stat().st_size for path in place.iterdir()) / 1e9
        print(f"flux of {size:.1f} GB (holes) to {form}: {seconds:.1f} s, peak {peak:.0f} MiB")
        peaks.append(peak)
        clear(target)
    clear(folder / "flux")
    return max(peaks)


def through_a_store(folder: Path, *, rounds: int) -> dict[str, float]:
    """From a SeaweedFS into the same, against plain upload and download of the same bytes."""
    from kubebooth_store import fetch, open_store, publish

    server = Weed(folder / "weed", buckets=(BUCKET,))
    rows: dict[str, Times] = {}
    try:
        server.start()
        keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        store = open_store(
            f"s3://{BUCKET}", endpoint=server.url, access_key=server.access_key,
            secret_key=server.secret_key,
        )  # fmt: skip
        for number in range(rounds + 1):
            source = f"s3://{BUCKET}/model{number}"

            def convert(*words: str, source: str = source) -> tuple[float, float]:
                place = f"s3://{BUCKET}/made"
                store.delete_prefix("made")
                options = ["--to", "safetensors", "--endpoint", server.url, *words]
                return timed([sys.executable, "-c", OURS, "convert", source, place, *options],
                             more=keys)  # fmt: skip

            tools: dict[str, Callable[[], tuple[float, float]]] = {
                "upload": clocked(
                    lambda n=number: publish(store, f"model{n}", folder / "model", kind="model")
                ),
                "download": clocked(
                    lambda n=number: fetch(store, f"model{n}", folder / f"back{n}")
                ),
                "store": lambda convert=convert: convert("--no-verify"),
                "store, proven": convert,
            }
            for name, tool in tools.items():
                seconds, peak = tool()
                if number:  # the first round only warms up
                    rows.setdefault(name, Times()).seconds.append(seconds)
                    rows[name].peak_mib.append(peak)
                    show(name, seconds, peak)
            clear(folder / f"back{number}")
            store.delete_prefix(f"model{number}")
    finally:
        server.kill()
        server.stop()
    slower = max(rows["upload"].middle, rows["download"].middle)
    return {
        "store": slower / rows["store"].middle,
        "store, proven": slower / rows["store, proven"].middle,
        "memory through a store": max(rows["store"].peak, rows["store, proven"].peak),
    }


def clocked(work: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """Seconds of some work within this process."""

    def run() -> tuple[float, float]:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began, 0.0

    return run


def in_turns(
    tools: Mapping[str, Callable[[], tuple[float, float]]], target: Path, *, rounds: int
) -> dict[str, Times]:
    """Run all tools in turns, in changing order, into a target that is removed before."""
    times = {name: Times() for name in tools}
    for number in range(rounds + 1):
        order = list(tools) if number % 2 else list(reversed(tools))
        for name in order:
            clear(target)
            os.sync()
            seconds, peak = tools[name]()
            if number:  # the first round only warms up
                times[name].seconds.append(seconds)
                times[name].peak_mib.append(peak)
                show(name, seconds, peak)
    return times


def ours(source: Path, target: Path, form: str, *words: str) -> tuple[float, float]:
    """Seconds and peak MiB of our command."""
    place = target if form == "diffusers" else target.with_suffix(f".{form}")
    clear(place)
    run = timed([sys.executable, "-c", OURS, "convert", str(source), str(place), "--to", form,
                 *words])  # fmt: skip
    if place != target and target.suffix != place.suffix:
        clear(place)
    return run


def timed(words: list[str], *, more: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds of a process and the peak MiB it tells."""
    began, before = time.perf_counter(), cpu_s()
    done = subprocess.run(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **(more or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    seconds = time.perf_counter() - began
    print(f"{'':20} {cpu_s() - before:7.2f} CPU-s", end="  ")
    if done.returncode:
        raise SystemExit(f"{words[:4]} ended with {done.returncode}: {done.stderr[-2000:]}")
    peak = [line for line in done.stdout.splitlines() if line.startswith("peak ")]
    return seconds, float(peak[0].split()[1]) if peak else 0.0


def cpu_s() -> float:
    """CPU seconds of all processes that have ended, which a busy machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def clear(place: Path) -> None:
    """Remove a file or folder, if it is there."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)


def show(name: str, seconds: float, peak: float) -> None:
    """One measurement as a line."""
    print(f"{name:20} {seconds:7.2f} s  {peak:6.0f} MiB", flush=True)


def tell(figures: Mapping[str, float]) -> int:
    """Print every figure with its goal, and report the first."""
    met = True
    for name, value in figures.items():
        what, sign, goal = GOALS.get(name, ("", "", 0.0))
        good = not sign or (value <= goal if sign == "<=" else value >= goal)
        met = met and good
        told = f"  goal {sign} {goal:g} {what}: {'met' if good else 'MISSED'}" if sign else ""
        print(f"{name:24} {value:8.2f}{told}")
    others = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
    goals = ", ".join(f"{name} {sign} {goal:g}" for name, (_, sign, goal) in GOALS.items())
    return report(
        bench="conversion",
        value=figures["safetensors"],
        unit="times the seconds of cp, layout to safetensors",
        against=others,
        goal=goals,
        ok=met,
    )


if __name__ == "__main__":
    raise SystemExit(main())
