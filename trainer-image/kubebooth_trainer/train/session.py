"""The stages of a run at work: update, save, show, and stop when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kubebooth_api.runs import TrainRun
from kubebooth_store import Store
from torch import Tensor

from kubebooth_trainer.errors import DataError, InternalFault, Preempted
from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train.checkpoints import Checkpoints, State
from kubebooth_trainer.train.dataset import Snapshot
from kubebooth_trainer.train.feeds import Feeds
from kubebooth_trainer.train.hints import Course, hints
from kubebooth_trainer.train.loop import Reading, train_stage
from kubebooth_trainer.train.memory_ladder import Chosen
from kubebooth_trainer.train.meter import Meter, Speed
from kubebooth_trainer.train.record import Record, spacing
from kubebooth_trainer.train.samples import (
    CONTACT_SHEET,
    already_published,
    paint_rows,
    publish_samples,
    rows_of,
    sample_prompts,
    samples_prefix,
)
from kubebooth_trainer.train.sheets import contact_sheet
from kubebooth_trainer.train.stages import Part, Stage, keeps_before, position_at
from kubebooth_trainer.train.trackers import Trackers
from kubebooth_trainer.train.updates import Facts, Updates
from kubebooth_trainer.train.validation import Validation
from kubebooth_trainer.train.weights import Weights
from kubebooth_trainer.train.words import Words
from kubebooth_trainer.train.work import Work


@dataclass(frozen=True)
class Bench:
    """Everything that the stages of one run work with."""

    run: TrainRun
    stages: tuple[Stage, ...]
    placement: Placement
    model: Model
    weights: Weights
    chosen: Chosen
    feeds: Feeds | None
    """None when every update is done."""
    snapshot: Snapshot
    store: Store
    reporter: Reporter
    workdir: Path
    checkpoints: Checkpoints
    record: Record
    meter: Meter
    work: Work
    trackers: Trackers
    validation: Validation | None = None


def continue_from(bench: Bench, state: State | None) -> None:
    """Put the weights of a resumed state into the model. Raises `DataError` when they differ."""
    if state is None:
        return
    for part in _kept_parts(bench.stages, state.position.name):
        _load(bench.weights, part, state.tensors)


def run_stage(bench: Bench, stage: Stage, state: State | None) -> Updates:
    """Train a stage to its target, from the state if it belongs to the stage.

    Raises `Preempted` after saving when the worker is asked to stop.
    """
    training = bench.run.training
    updates = Updates(
        bench.weights,
        stage,
        training=training,
        placement=bench.placement,
        fused=bench.chosen.fused,
    )
    first = 0
    if state is not None and state.position.name == stage.name:
        first = state.position.step
        facts = Facts(state.facts["lossScale"], int(state.facts["goodUpdates"]))
        updates.restore(state.tensors, facts, step=first)
        bench.meter.skip(bench.work.update(stage) * first)
    if first < stage.steps:
        _train(bench, stage, updates, first)
    for part in stage.parts:
        if part not in stage.keeps:
            bench.weights.discard(part)
    return updates


def _train(bench: Bench, stage: Stage, updates: Updates, first: int) -> None:
    if bench.feeds is None:
        raise InternalFault(f"no pictures were loaded although {stage.name} is not finished")
    learned = keeps_before(bench.stages, stage, "textEncoder")
    words = bench.feeds.words(stage, trained=bench.weights.of("textEncoder") if learned else {})
    speed = Speed(bench.run.training.batch_size * bench.run.training.gradient_accumulation)
    bench.chosen.make_room(bench.model)
    for reading in train_stage(
        stage,
        model=bench.model,
        feed=bench.feeds.of(stage),
        words=words,
        updates=updates,
        training=bench.run.training,
        first=first,
    ):
        _record(bench, stage, reading)
        if _validation_is_due(bench, stage, reading.step):
            with updates.averaged():
                _validate(bench, stage, reading, words)
        _tell(bench, stage, reading, speed)
        stopping = bench.reporter.stop.is_set()
        if not stopping and _sheet_is_due(bench, stage, reading.step):
            with updates.averaged():
                _show(bench, stage, reading.step)
            bench.chosen.make_room(bench.model)
        if stopping or _save_is_due(bench, stage, reading.step):
            _save(bench, stage, updates, reading.step)
        if stopping:
            bench.checkpoints.wait()
            raise Preempted(
                f"stopped at step {reading.step} of {stage.steps} of {stage.name}; the state is"
                " saved and training goes on from there"
            )


def _record(bench: Bench, stage: Stage, reading: Reading) -> None:
    bench.record.add(
        stage.name,
        reading.step,
        steps=stage.steps,
        loss=reading.loss,
        learning_rate=reading.learning_rate,
    )


def _tell(bench: Bench, stage: Stage, reading: Reading, speed: Speed) -> None:
    bench.meter.add(bench.work.update(stage))
    pace = speed.tick()
    if reading.step % spacing(stage.steps) == 0 or reading.step == stage.steps:
        told = {"loss": reading.loss, "learning_rate": reading.learning_rate}
        measured = bench.record.validated_at(stage.name, reading.step)
        if measured is not None:
            told["validation_loss"] = measured
        bench.trackers.told(stage.name, reading.step, {**told, "images_per_second": pace})
    bench.meter.tell(
        stage.name,
        reading.step,
        stage.steps,
        loss=bench.record.smoothed,
        learning_rate=reading.learning_rate,
        images_per_second=pace,
        validation_loss=bench.record.validation_loss,
    )


def _validation_is_due(bench: Bench, stage: Stage, step: int) -> bool:
    """At every so many updates, at the last, and before a state is saved that may be the best.

    A wish to stop changes nothing here: an interrupted run measures where an undisturbed one does.
    """
    asked = bench.run.training.validation
    if bench.validation is None or asked is None or stage.name != "Denoiser":
        return False
    if step % asked.every_steps == 0 or step == stage.steps:
        return True
    return bench.run.checkpoints.keep_best > 0 and _save_is_due(bench, stage, step)


def _validate(bench: Bench, stage: Stage, reading: Reading, words: Words) -> None:
    if bench.validation is None:
        return
    bench.record.validated(
        stage.name,
        reading.step,
        loss=bench.validation.loss(words.of),
        learning_rate=reading.learning_rate,
    )


def _save_is_due(bench: Bench, stage: Stage, step: int) -> bool:
    asked = bench.run.checkpoints
    if step == stage.steps or (stage.name == "Denoiser" and step in asked.at_steps):
        return True
    return step >= asked.from_step and step % asked.every_steps == 0


def _sheet_is_due(bench: Bench, stage: Stage, step: int) -> bool:
    every = bench.run.samples.every_steps
    return stage.name == "Denoiser" and every > 0 and step % every == 0 and step < stage.steps


def _save(bench: Bench, stage: Stage, updates: Updates, step: int) -> None:
    tensors: dict[str, Tensor] = dict(updates.capture())
    for part in _kept_parts(bench.stages, stage.name):
        tensors |= {f"weights/{name}": weight for name, weight in bench.weights.of(part).items()}
    facts = asdict(updates.facts)
    bench.trackers.saved(bench.record)
    bench.checkpoints.save(
        State(
            position=position_at(bench.stages, stage, step),
            tensors=tensors,
            facts={"lossScale": facts["loss_scale"], "goodUpdates": facts["good_updates"]},
            losses=bench.record.points,
            validations=bench.record.validations,
            validation_loss=bench.record.validated_at(stage.name, step),
        )
    )


def _show(bench: Bench, stage: Stage, step: int) -> None:
    """Publish a contact sheet of the present weights."""
    prefix = samples_prefix(bench.run, stage.name, step)
    prompts = sample_prompts(bench.run, bench.snapshot)
    if not already_published(bench.store, prefix, having=CONTACT_SHEET):
        total = len(prompts) * bench.run.samples.images_per_prompt
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            bench.meter.add(bench.work.picture * more)
            bench.meter.tell("Samples", done, total)

        pictures = paint_rows(
            bench.model, prompts, bench.run, stop=bench.reporter.stop, on_done=tell
        )
        sheet = contact_sheet(
            rows_of(bench.run, bench.snapshot, prompts, pictures),
            title=f"{bench.run.session.name}: step {step} of {stage.steps}",
            subtitle=f"{stage.name}, run {bench.run.digest[7:19]}",
        )
        publish_samples(bench.store, prefix, {CONTACT_SHEET: sheet})
    bench.trackers.painted(stage.name, step)
    bench.reporter.painted(bench.store.uri_of(f"{prefix}/{CONTACT_SHEET}"))


def hints_of(bench: Bench) -> tuple[str, ...]:
    """What the losses so far suggest."""
    course = Course(
        bench.record.points,
        bench.record.validations,
        pictures=len(bench.snapshot.pictures),
        kept_steps=bench.checkpoints.kept_steps,
    )
    return hints(course, bench.run.training)


def _kept_parts(stages: tuple[Stage, ...], name: str) -> tuple[Part, ...]:
    """Parts whose weights a state of a stage holds: what it trains and what earlier ones left."""
    parts: list[Part] = []
    for stage in stages:
        if stage.name == name:
            parts += stage.parts
            break
        parts += stage.keeps
    return tuple(dict.fromkeys(parts))


@torch.no_grad()
def _load(weights: Weights, part: Part, tensors: Mapping[str, Tensor]) -> None:
    for name, weight in weights.of(part).items():
        saved = tensors.get(f"weights/{name}")
        if saved is None or saved.shape != weight.shape:
            raise DataError(
                f"checkpoint: the weights of {name} do not fit the base model; delete the"
                " run's checkpoints or start a new run with rerun"
            )
        weight.copy_(saved)
