"""The model card: what the model is, how to use it, what it was made of. No clock, no guess."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.session import Output

from kubebooth_trainer.train.dataset import Snapshot


def model_card(
    run: TrainRun, output: Output, *, snapshot: Snapshot, reached: Mapping[str, int]
) -> str:
    """Markdown with front matter; equal runs give equal bytes, whatever their session is called."""
    row = BASE_MODELS[run.variant]
    updates = ", ".join(f"{steps} of {stage}" for stage, steps in reached.items())
    prompts = "\n".join(f"    {_line(prompt)}" for prompt in snapshot.instance_prompts)
    settings = json.dumps(run.training.dump(), indent=2, sort_keys=True, ensure_ascii=False)
    return f"""---
license: other
license_name: {json.dumps(row.license)}
library_name: diffusers
pipeline_tag: text-to-image
tags: [dreambooth, {row.family}, {run.variant}]
---

# {_line(snapshot.instance_prompts[0])}

{row.title}, fine-tuned on {len(snapshot.pictures)} pictures with Kubebooth. The licence of the base
model ({row.license}) applies.

Prompts that call what it learned:

{prompts}

## Use

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
    pipe({json.dumps(_line(snapshot.instance_prompts[0]), ensure_ascii=False)}).images[0]

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
