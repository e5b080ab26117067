"""Class images for prior preservation: painted once by the base model, kept in the store.

Each picture's start noise is keyed by seed and number, and the folder by all that determines the
pictures, so a stopped painting goes on where it was and the next run reuses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from kubebooth_api import layout
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.training import PriorPreservation
from kubebooth_store import Corrupt, NotFound, Store, fetch, publish, read_manifest

from kubebooth_trainer.errors import DataError, Preempted
from kubebooth_trainer.families.door import Model, Painting
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.dataset import Picture, open_picture, square
from kubebooth_trainer.train.painting import batches

VERSION = 1
log = logging.getLogger(__name__)


def class_images_digest(run: TrainRun, prior: PriorPreservation) -> str:
    """Digest of everything that determines the class images."""
    return digest_json(
        {
            "version": VERSION,
            "baseModel": run.base_model.digest,
            "prompt": prior.class_prompt,
            "images": prior.num_images,
            "inferenceSteps": prior.inference_steps,
            "guidanceScale": prior.guidance_scale,
            "seed": run.training.seed,
            "resolution": run.resolution,
            "zeroTerminalSnr": run.training.zero_terminal_snr,
        }
    )


def class_images(
    run: TrainRun,
    prior: PriorPreservation,
    *,
    model: Model,
    store: Store,
    folder: Path,
    stop: Event,
    on_done: Callable[[int], None],
) -> tuple[Picture, ...]:
    """The class images, fetched or painted and published; `on_done` hears the number present.

    Raises `Preempted` between batches when `stop` is set; what is painted by then is kept.
    """
    session = layout.session(run.session.namespace, run.session.name)
    prefix = layout.class_images(session, class_images_digest(run, prior))
    names = [f"{number:04d}.png" for number in range(prior.num_images)]
    if not _fetched(store, prefix, folder):
        folder.mkdir(parents=True, exist_ok=True)
        _paint_missing(
            run, prior, names, model=model, store=store, prefix=prefix, folder=folder, stop=stop,
            on_done=on_done,
        )  # fmt: skip
        metadata = {"prompt": prior.class_prompt, "baseModel": run.base_model.digest}
        publish(store, prefix, folder, kind="class-images", metadata=metadata)
    on_done(len(names))
    return tuple(
        Picture(folder / name, prior.class_prompt, f"class image {name}", square(run.resolution))
        for name in names
    )


def _fetched(store: Store, prefix: str, folder: Path) -> bool:
    """Whether published pictures are there and sound; broken ones are removed to be made anew."""
    try:
        manifest = read_manifest(store, prefix)
        if manifest is None:
            return False
        fetch(store, prefix, folder, expect_digest=manifest.digest)
    except (Corrupt, NotFound) as error:
        log.warning("class images %s are broken and painted again: %s", prefix, error)
        store.delete_prefix(prefix)
        for path in folder.glob("*.png"):
            path.unlink()
        return False
    return True


def _paint_missing(
    run: TrainRun,
    prior: PriorPreservation,
    names: Sequence[str],
    *,
    model: Model,
    store: Store,
    prefix: str,
    folder: Path,
    stop: Event,
    on_done: Callable[[int], None],
) -> None:
    """Paint batch by batch; a batch that is in the store as a whole is taken from there."""
    there = {entry.key.removeprefix(f"{prefix}/") for entry in store.list(prefix)}
    shape = model.latent_shape((run.resolution, run.resolution))
    done = 0
    for batch in batches(range(len(names)), resolution=run.resolution):
        if stop.is_set():
            raise Preempted(f"stopped while painting class images; {done} of {len(names)} are kept")
        mine = [names[number] for number in batch]
        if not (there.issuperset(mine) and _taken(store, prefix, mine, folder, run.resolution)):
            paintings = [
                Painting(
                    prior.class_prompt,
                    "",
                    draws.normal(shape, run.training.seed, "class image", number),
                )
                for number in batch
            ]
            pictures = model.paint(
                paintings,
                inference_steps=prior.inference_steps,
                guidance_scale=prior.guidance_scale,
            )
            for name, picture in zip(mine, pictures, strict=True):
                picture.save(folder / name, "PNG")
                store.upload(folder / name, f"{prefix}/{name}")
        done += len(mine)
        on_done(done)


def _taken(store: Store, prefix: str, names: Sequence[str], folder: Path, resolution: int) -> bool:
    try:
        for name in names:
            store.download(f"{prefix}/{name}", folder / name)
            data = (folder / name).read_bytes()
            open_picture(data, name=name, size=(resolution, resolution))
    except (Corrupt, NotFound, DataError) as error:
        log.warning("class images in %s are broken and painted again: %s", prefix, error)
        return False
    return True
