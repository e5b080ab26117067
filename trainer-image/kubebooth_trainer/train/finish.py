"""The end of a run: pictures before and after, the loss curve, the published model."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact
from PIL import Image, ImageOps

from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.train.dataset import open_picture
from kubebooth_trainer.train.publish import build, publish_artifact
from kubebooth_trainer.train.samples import (
    BEFORE_AFTER,
    CONTACT_SHEET,
    LOSS,
    METRICS,
    already_published,
    paint_rows,
    publish_samples,
    rows_of,
    sample_prompts,
    samples_prefix,
)
from kubebooth_trainer.train.session import Bench
from kubebooth_trainer.train.sheets import before_after, contact_sheet, loss_curve
from kubebooth_trainer.train.updates import Updates

MOST_TRAINING_PICTURES = 16


def finish(bench: Bench, updates: Updates) -> tuple[tuple[Artifact, ...], str]:
    """Paint, then publish; the artifacts and the address of the before-and-after picture.

    The pointer to the artifact moves last, so whoever sees it finds everything else.
    """
    run, last = bench.run, bench.stages[-1]
    prefix = samples_prefix(run, last.name, last.steps)
    folder = bench.workdir / "artifacts"
    shutil.rmtree(folder, ignore_errors=True)
    painted = already_published(bench.store, prefix, having=BEFORE_AFTER)
    with updates.averaged():
        after = None if painted else _paint(bench, part=0)
        built = build(
            run,
            bench.model,
            bench.weights,
            snapshot=bench.snapshot,
            stages=bench.stages,
            folder=folder,
        )
    if after is not None:
        with bench.weights.base():
            before = _paint(bench, part=1)
        _publish_sheets(bench, prefix, before, after)
        bench.trackers.painted(last.name, last.steps)
    bench.trackers.finish(bench.record)
    samples = bench.store.uri_of(f"{prefix}/{BEFORE_AFTER}")
    bench.reporter.painted(samples)
    artifacts: list[Artifact] = []
    session = layout.session(run.session.namespace, run.session.name)
    for number, one in enumerate(built):
        if bench.reporter.stop.is_set():
            raise Preempted("stopped before publishing; the trained state is saved")
        bench.meter.tell("Publish", number, len(built))
        artifact = publish_artifact(
            run,
            bench.store,
            one,
            run_prefix=layout.run(session, run.digest),
            stages=bench.stages,
            given_up=bench.chosen.profile.result_changes,
        )
        artifacts.append(artifact)
    bench.meter.add(bench.work.publish)
    bench.meter.tell("Publish", len(built), len(built))
    return tuple(artifacts), samples


def _paint(bench: Bench, *, part: int) -> list[list[Image.Image]]:
    """Pictures of all prompts with the present weights; `part` 0 is after, 1 is before."""
    prompts = sample_prompts(bench.run, bench.snapshot)
    total = len(prompts) * bench.run.samples.images_per_prompt
    return paint_rows(
        bench.model,
        prompts,
        bench.run,
        stop=bench.reporter.stop,
        on_done=_teller(bench, done=part * total, total=2 * total),
    )


def _teller(bench: Bench, *, done: int, total: int) -> Callable[[int], None]:
    def tell(more: int) -> None:
        nonlocal done
        done += more
        bench.meter.add(bench.work.picture * more)
        bench.meter.tell("Samples", done, total)

    return tell


def _publish_sheets(
    bench: Bench,
    prefix: str,
    before: list[list[Image.Image]],
    after: list[list[Image.Image]],
) -> None:
    run, prompts = bench.run, sample_prompts(bench.run, bench.snapshot)
    trained_on = [
        _cell(open_picture(picture.read(), name=picture.name, size=picture.size))
        for picture in bench.snapshot.pictures[:MOST_TRAINING_PICTURES]
    ]
    updates = " + ".join(f"{stage.steps} {stage.name}" for stage in bench.stages)
    told = f"{run.variant}, {updates} updates, run {run.digest[7:19]}"
    publish_samples(
        bench.store,
        prefix,
        {
            BEFORE_AFTER: before_after(
                rows_of(run, bench.snapshot, prompts, before, after),
                trained_on,
                title=f"{run.session.name}: before and after training",
                subtitle=f"same prompts, same noise; {told}",
            ),
            CONTACT_SHEET: contact_sheet(
                rows_of(run, bench.snapshot, prompts, after),
                title=run.session.name,
                subtitle=told,
            ),
            LOSS: loss_curve(
                bench.record.points,
                title=f"{run.session.name}: training loss",
                subtitle=told,
                validations=bench.record.validations,
            ),
            METRICS: bench.record.lines(),
        },
    )


def _cell(picture: Image.Image) -> Image.Image:
    """The centre of a training picture of any shape, for a square cell of a sheet."""
    edge = min(picture.size)
    return ImageOps.fit(picture, (edge, edge))
