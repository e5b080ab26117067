"""Class images for prior preservation: given ones first, the rest painted once by the base model.

Each painted picture's start noise is keyed by seed and number, and the folder by all that
determines the pictures, so a stopped painting goes on where it was and the next run reuses them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from kubebooth_trainer.train.dataset import Picture, open_picture, uncut
from kubebooth_trainer.train.order import shared_out
from kubebooth_trainer.train.painting import batches

VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassPlan:
    """Which class images a training uses: the given ones that fit, and how many of which
    (height, width) are painted."""

    given: tuple[Picture, ...]
    painted: tuple[tuple[int, int], ...]


def plan_class_images(
    run: TrainRun,
    prior: PriorPreservation,
    *,
    pictures: Sequence[Picture],
    given: Sequence[Picture],
) -> ClassPlan:
    """`numImages` class images in the shapes of the pictures to train on, as the shapes are used.

    Given ones are taken in their order as far as they fit; what a shape then lacks is painted. One
    without caption takes the class prompt.
    """
    used: Counter[tuple[int, int]] = Counter()
    for picture in pictures:
        used[picture.size] += picture.repeats
    taken: list[Picture] = []
    painted: list[tuple[int, int]] = []
    for size, wanted in sorted(shared_out(prior.num_images, used).items()):
        fitting = [picture for picture in given if picture.size == size][:wanted]
        taken += [replace(p, prompt=p.prompt or prior.class_prompt) for p in fitting]
        painted += [size] * (wanted - len(fitting))
    if given:
        log.info(
            "class images: %d of %d given are used, %d are painted",
            len(taken), len(given), len(painted),
        )  # fmt: skip
    return ClassPlan(tuple(taken), tuple(painted))


def class_images_digest(
    run: TrainRun, prior: PriorPreservation, sizes: Sequence[tuple[int, int]]
) -> str:
    """Digest of everything that determines the painted class images."""
    squares = {(run.resolution, run.resolution)} == set(sizes)
    return digest_json(
        {
            "version": VERSION,
            "baseModel": run.base_model.digest,
            "prompt": prior.class_prompt,
            "images": len(sizes),
            "inferenceSteps": prior.inference_steps,
            "guidanceScale": prior.guidance_scale,
            "seed": run.training.seed,
            "resolution": run.resolution,
            "zeroTerminalSnr": run.training.zero_terminal_snr,
            **({} if squares else {"sizes": [list(size) for size in sizes]}),
        }
    )


def class_images(
    run: TrainRun,
    prior: PriorPreservation,
    plan: ClassPlan,
    *,
    model: Model,
    store: Store,
    folder: Path,
    stop: Event,
    on_done: Callable[[int], None],
) -> tuple[Picture, ...]:
    """The class images, given, fetched or painted; `on_done` hears how many painted ones are there.

    Raises `Preempted` between batches when `stop` is set; what is painted by then is kept.
    """
    sizes = plan.painted
    if not sizes:
        return plan.given
    session = layout.session(run.session.namespace, run.session.name)
    prefix = layout.class_images(session, class_images_digest(run, prior, sizes))
    named = [(f"{number:04d}.png", size) for number, size in enumerate(sizes)]
    if not _fetched(store, prefix, folder):
        folder.mkdir(parents=True, exist_ok=True)
        _paint_missing(
            run, prior, named, model=model, store=store, prefix=prefix, folder=folder, stop=stop,
            on_done=on_done,
        )  # fmt: skip
        metadata = {"prompt": prior.class_prompt, "baseModel": run.base_model.digest}
        publish(store, prefix, folder, kind="class-images", metadata=metadata)
    on_done(len(named))
    painted = tuple(
        Picture(folder / name, prior.class_prompt, f"class image {name}", uncut(size))
        for name, size in named
    )
    return (*plan.given, *painted)


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


Named = tuple[str, tuple[int, int]]
"""File name, and (height, width) of the picture."""


def _paint_missing(
    run: TrainRun,
    prior: PriorPreservation,
    named: Sequence[Named],
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
    done = 0
    for numbers in _batches(named, resolution=run.resolution):
        if stop.is_set():
            raise Preempted(f"stopped while painting class images; {done} of {len(named)} are kept")
        mine = [named[number] for number in numbers]
        whole = there.issuperset(name for name, _ in mine)
        if not (whole and _taken(store, prefix, mine, folder)):
            shape = model.latent_shape(mine[0][1])
            paintings = [
                Painting(
                    prior.class_prompt,
                    "",
                    draws.normal(shape, run.training.seed, "class image", number),
                )
                for number in numbers
            ]
            pictures = model.paint(
                paintings,
                inference_steps=prior.inference_steps,
                guidance_scale=prior.guidance_scale,
            )
            for (name, _), picture in zip(mine, pictures, strict=True):
                picture.save(folder / name, "PNG")
                store.upload(folder / name, f"{prefix}/{name}")
        done += len(mine)
        on_done(done)


def _batches(named: Sequence[Named], *, resolution: int) -> Iterator[Sequence[int]]:
    """Numbers of pictures that are painted together: of one size, and as many as fit."""
    for wanted in dict.fromkeys(size for _, size in named):
        alike = [number for number, (_, size) in enumerate(named) if size == wanted]
        yield from batches(alike, resolution=resolution)


def _taken(store: Store, prefix: str, named: Sequence[Named], folder: Path) -> bool:
    try:
        for name, size in named:
            store.download(f"{prefix}/{name}", folder / name)
            open_picture((folder / name).read_bytes(), name=name, size=size)
    except (Corrupt, NotFound, DataError) as error:
        log.warning("class images in %s are broken and painted again: %s", prefix, error)
        return False
    return True
