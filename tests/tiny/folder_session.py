"""A session on a folder store: base model and snapshot published, a Run to train on them.

python -m tests.tiny.folder_session FOLDER [SETTINGS.json]    trains the shapes model there
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Manifest
from kubebooth_api.runs import SessionIdentity, StoreLocation, TrainRun, run_digest
from kubebooth_api.v1alpha1.training import Checkpoints, Samples, Training
from kubebooth_store import Store, open_store, publish
from kubebooth_trainer.reporter import Reporter
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "examples" / "shapes"
SESSION = layout.session("default", "quickstart")


@dataclass(frozen=True)
class FolderSession:
    """Where everything stands, and what it is trained from."""

    root: Path
    store: Store
    base: Artifact
    dataset: Artifact
    resolution: int

    def run(
        self,
        training: Mapping[str, Any],
        *,
        samples: Mapping[str, Any] | None = None,
        checkpoints: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> TrainRun:
        """A Run with settings written as in a manifest."""
        parsed = Training.parse(training)
        variant = more.pop("variant", "sd15")
        digest = run_digest(
            training=parsed,
            variant=variant,
            resolution=self.resolution,
            dataset_digest=self.dataset.digest,
            base_model_digest=self.base.digest,
        )
        return TrainRun(
            session=SessionIdentity(namespace="default", name="quickstart"),
            store=StoreLocation(uri=self.store.uri),
            digest=digest,
            variant=variant,
            base_model=self.base,
            dataset=self.dataset,
            resolution=self.resolution,
            training=parsed,
            samples=Samples.parse(samples or {}),
            checkpoints=Checkpoints.parse(checkpoints or {}),
            **more,
        )

    def train(self, run: TrainRun, *, reporter: Reporter | None = None) -> Any:
        """Train in this process, with a scratch folder of its own."""
        from kubebooth_trainer.train import train

        with tempfile.TemporaryDirectory() as folder:
            return train(
                run,
                store=self.store,
                reporter=reporter or Reporter(first_stage="TextEncoder"),
                workdir=Path(folder),
            )

    def path_of(self, uri: str) -> Path:
        """The file or folder behind an address of the store."""
        return self.root / self.store.key_of(uri)


def folder_session(
    root: Path,
    *,
    base: Path,
    pictures: list[Path],
    resolution: int,
    prompts: list[str] | None = None,
    token: str = "sks",
    class_name: str = "square",
) -> FolderSession:
    """Publish a base model and a snapshot of square PNGs into a folder store."""
    root.mkdir(parents=True, exist_ok=True)
    store = open_store(f"file://{root}")
    store.create_root()
    key = layout.model("base")
    model = publish(store, key, base, kind="model")
    with tempfile.TemporaryDirectory() as folder:
        _write_snapshot(
            Path(folder), pictures, resolution, prompts=prompts, token=token, class_name=class_name
        )
        prefix = layout.dataset(SESSION, "sha256:" + "d" * 64)
        dataset = publish(store, prefix, Path(folder), kind="dataset")
    return FolderSession(
        root,
        store,
        _artifact(store, "base", key, model),
        _artifact(store, "dataset", prefix, dataset),
        resolution,
    )


def _write_snapshot(
    folder: Path,
    pictures: list[Path],
    resolution: int,
    *,
    prompts: list[str] | None,
    token: str,
    class_name: str,
) -> None:
    (folder / "images").mkdir()
    rows = []
    for number, path in enumerate(pictures):
        name = f"images/{number:04d}.png"
        Image.open(path).convert("RGB").resize((resolution, resolution)).save(folder / name)
        rows.append(
            {
                "file": name,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                "concept": "subject",
                "prompt": prompts[number] if prompts else f"{token} {class_name}",
                "caption": prompts is not None,
                "source": path.name,
            }
        )
    told = {
        "version": 1,
        "resolution": resolution,
        "concepts": [{"name": "subject", "token": token, "className": class_name, "repeats": 1}],
        "images": rows,
    }
    (folder / "dataset.json").write_text(json.dumps(told))


def _artifact(store: Store, name: str, key: str, manifest: Manifest) -> Artifact:
    return Artifact(
        name=name, uri=store.uri_of(key), digest=manifest.digest, size=manifest.size_bytes
    )


def shapes_session(root: Path) -> FolderSession:
    """The shapes model and the pictures of its subject."""
    return folder_session(
        root,
        base=SHAPES / "base",
        pictures=sorted((SHAPES / "subject").glob("*.png")),
        resolution=128,
    )


def run_of_training(training: Training, variant: str) -> TrainRun:
    """A Run that leads nowhere, for whoever only wants to know what was asked."""
    digest = "sha256:" + "0" * 64
    thing = Artifact(name="thing", uri="file:///thing", digest=digest, size=0)
    return TrainRun(
        session=SessionIdentity(namespace="default", name="quickstart"),
        store=StoreLocation(uri="file:///store"),
        digest=digest,
        variant=variant,
        base_model=thing,
        dataset=thing,
        resolution=64,
        training=training,
    )


class Told(threading.Thread):
    """Prints progress now and then."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(daemon=True)
        self._reporter, self.ended = reporter, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(3):
            p = self._reporter.status.progress
            print(
                f"{p.percentage:3d}% {p.stage} {p.step}/{p.total_steps} loss {p.loss} lr"
                f" {p.learning_rate} eta {p.estimated_remaining_seconds} {p.images_per_second}",
                flush=True,
            )


def main() -> None:
    """Train the shapes model on a folder store with settings from a file."""
    logging.basicConfig(level=logging.INFO)
    session = shapes_session(Path(sys.argv[1]).resolve())
    settings = json.loads(Path(sys.argv[2]).read_text())
    reporter = Reporter(first_stage="TextEncoder")
    told = Told(reporter)
    told.start()
    outcome = session.train(
        session.run(
            settings["training"],
            samples=settings.get("samples"),
            checkpoints=settings.get("checkpoints"),
        ),
        reporter=reporter,
    )
    told.ended.set()
    print(outcome)


if __name__ == "__main__":
    main()
