"""Loads a converted model with Diffusers and runs one step on the CPU, in a process of its own.

The only module of the converter that has to do with torch; the parent never imports it. It must not
know how the model was made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kubebooth_api.artifacts import Manifest
from kubebooth_store import Store, fetch

from kubebooth_trainer.convert.door import Plan
from kubebooth_trainer.errors import DataError, InternalFault

_TIMEOUT_S = 3600
_EDGE_PIXELS = 64


def load_published(
    store: Store, prefix: str, manifest: Manifest, plan: Plan, workdir: Path
) -> None:
    """Fetch an artifact and load it. Raises `DataError` when it does not run."""
    folder = workdir / "loaded"
    fetch(store, prefix, folder, expect_digest=manifest.digest)
    model = next(file for file in plan.files if file.form != "Text")
    is_layout = any(file.path.endswith(("model_index.json", "config.json")) for file in plan.files)
    load_local(folder if is_layout else folder / model.path, plan)


def load_local(path: Path, plan: Plan) -> None:
    """Load a model on disk. Raises `DataError` when it does not run."""
    done = subprocess.run(
        [sys.executable, "-m", "kubebooth_trainer.convert.proof.loading", str(path), plan.variant],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        return
    last = (done.stderr.strip().splitlines() or ["it was ended"])[-1]
    raise DataError(
        f"{path.name} was written and reads back equal, but does not run: {last[:300]}; convert"
        " without load to keep it all the same",
        reason="DoesNotLoad",
    )


def _main(path: Path, variant: str) -> None:
    if path.is_dir():
        _run(path)
        return
    with tempfile.TemporaryDirectory(prefix="kubebooth-load-") as folder:
        _run(_as_layout(path, Path(folder) / "layout", variant))


def _as_layout(path: Path, folder: Path, variant: str) -> Path:
    from kubebooth_trainer.convert.formats.opening import open_local
    from kubebooth_trainer.convert.options import Options
    from kubebooth_trainer.convert.planning import plan
    from kubebooth_trainer.convert.writing.targets import Wish, write_folder

    asked: Any = variant or "Auto"
    made = plan(open_local(path), Options("Diffusers", variant=asked))
    write_folder(made, folder, Wish(durable=False), checks=(), tell=lambda _what, _count: None)
    return folder


def _run(folder: Path) -> None:
    """One step of a pipeline; of a single component, its weights."""
    import diffusers
    import torch

    torch.manual_seed(0)
    if not (folder / "model_index.json").exists():
        name = json.loads((folder / "config.json").read_text())["_class_name"]
        model = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
        good = all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    else:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32
        )
        made = pipeline(
            "a photo", num_inference_steps=1, height=_EDGE_PIXELS, width=_EDGE_PIXELS,
            output_type="latent",
        )  # fmt: skip
        good = bool(torch.isfinite(made.images).all())
    if not good:
        raise InternalFault("its result holds NaN or infinity")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
