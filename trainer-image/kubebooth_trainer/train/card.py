"""The model card: what the model is, how to use it, what it was made of. No clock, no guess."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.session import Output

from kubebooth_trainer.train.dataset import Snapshot


def model_card(
    run: TrainRun,
    output: Output,
    *,
    snapshot: Snapshot,
    reached: Mapping[str, int],
    lora_file: str | None = None,
) -> str:
    """Markdown with front matter; equal runs give equal bytes, whatever their session is called.

    `lora_file` is the file for web UIs, where the artifact is a low-rank update.
    """
    row = BASE_MODELS[run.variant]
    updates = ", ".join(f"{steps} of {stage}" for stage, steps in reached.items())
    prompts = "\n".join(f"    {_line(prompt)}" for prompt in snapshot.instance_prompts)
    what = f"A LoRA for {row.title}, trained" if lora_file else f"{row.title}, fine-tuned"
    tag = ", lora" if lora_file else ""
    first = json.dumps(_line(snapshot.instance_prompts[0]), ensure_ascii=False)
    settings = json.dumps(run.training.dump(), indent=2, sort_keys=True, ensure_ascii=False)
    return f"""---
license: other
license_name: {json.dumps(row.license)}
library_name: diffusers
pipeline_tag: text-to-image
tags: [dreambooth, {row.family}, {run.variant}{tag}]
---

# {_line(snapshot.instance_prompts[0])}

{what} on {len(snapshot.pictures)} pictures with Kubebooth. The licence of the base
model ({row.license}) applies.

Prompts that call what it learned:

{prompts}

## Use

{_use(run, first, file=lora_file)}

## Made of

| what | value |
| --- | --- |
| run | `{run.digest}` |
| base model | `{run.base_model.digest}` |
| dataset | `{run.dataset.digest}` |
| updates | {updates} |
| resolution | {run.resolution} px |
| precision | {output.precision} |

Training settings:

```json
{settings}
```
"""


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _use(run: TrainRun, prompt: str, *, file: str | None) -> str:
    """How to paint with it, in Python and in a web UI."""
    if file is None:
        return f"""    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
    pipe({prompt}).images[0]"""
    stem = file.removesuffix(".safetensors")
    return f"""    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("the base model")
    pipe.load_lora_weights("path/to/this/folder", weight_name="pytorch_lora_weights.safetensors")
    pipe({prompt}).images[0]

In a web UI: put `{file}` where it looks for LoRAs, and write `<lora:{stem}:1>` into the prompt
(AUTOMATIC1111, Forge), or load it with a LoRA loader (ComfyUI). The base model must be the one
named below, or a relative of it."""
