"""One training from start to end: fetch, go on from the newest state, train, paint, publish."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Checkpoint
from kubebooth_api.runs import TrainRun
from kubebooth_store import Store, fetch

from kubebooth_trainer.families.door import Model, Placement
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train.checkpoints import Checkpoints, State
from kubebooth_trainer.train.dataset import Picture, Snapshot, hold_out, read_snapshot
from kubebooth_trainer.train.device import make_repeatable, place
from kubebooth_trainer.train.feeds import Feeds, Place, Sources, find_sources, gather
from kubebooth_trainer.train.finish import finish
from kubebooth_trainer.train.lora import LowRank
from kubebooth_trainer.train.memory_ladder import Chosen, Descent
from kubebooth_trainer.train.memory_states import fitted
from kubebooth_trainer.train.meter import Meter
from kubebooth_trainer.train.publish import find_published
from kubebooth_trainer.train.record import Record
from kubebooth_trainer.train.refusals import family_of, refuse_other_base, refuse_unsupported
from kubebooth_trainer.train.samples import BEFORE_AFTER, sample_prompts, samples_prefix
from kubebooth_trainer.train.session import Bench, continue_from, hints_of, run_stage
from kubebooth_trainer.train.stages import Stage, is_over, plan_stages, trained_parts
from kubebooth_trainer.train.trackers import Trackers
from kubebooth_trainer.train.validation import Validation
from kubebooth_trainer.train.weights import OwnWeights, Weights
from kubebooth_trainer.train.work import Work, work_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """What a finished training left."""

    checkpoint: Checkpoint | None
    """Newest durable checkpoint."""
    artifacts: tuple[Artifact, ...]
    samples: str | None
    """Address of the before-and-after picture."""
    memory_profile: str
    hints: tuple[str, ...] = ()
    """What the losses suggest."""
    notes: tuple[str, ...] = ()
    """What went wrong beside the training, in words."""


def train(run: TrainRun, *, store: Store, reporter: Reporter, workdir: Path) -> TrainOutcome:
    """Train to the run's targets, or find that it was done.

    Raises the errors of `kubebooth_trainer.errors`, `Preempted` after saving when `reporter.stop`
    is set, and `StoreError`.
    """
    refuse_unsupported(run)
    place(run.training)
    stages = plan_stages(run.training)
    done = _found(run, stages, store=store, reporter=reporter, workdir=workdir)
    if done is not None:
        log.info("run %s is finished already: %s", run.digest, done.artifacts[0].uri)
        return done
    descent = Descent(run, store=store, run_prefix=_run_prefix(run))
    return descent.descend(
        lambda: _train(run, stages, descent, store=store, reporter=reporter, workdir=workdir)
    )


def _train(
    run: TrainRun,
    stages: tuple[Stage, ...],
    descent: Descent,
    *,
    store: Store,
    reporter: Reporter,
    workdir: Path,
) -> TrainOutcome:
    make_repeatable()
    reporter.advance(stages[0].name, 0, stages[0].steps, percentage=5)
    base = fetch(
        store, store.key_of(run.base_model.uri), workdir / "base",
        expect_digest=run.base_model.digest,
    )  # fmt: skip
    refuse_other_base(run, workdir / "base")
    fetch(
        store, store.key_of(run.dataset.uri), workdir / "dataset", expect_digest=run.dataset.digest
    )
    whole = read_snapshot(workdir / "dataset", resolution=run.resolution)
    snapshot, held_out = _split(whole, run)
    chosen = descent.choose(workdir / "base", stages)
    run, placement, profile = chosen.run, chosen.placement, chosen.told
    model = family_of(run)(
        workdir / "base",
        placement=placement,
        zero_terminal_snr=run.training.zero_terminal_snr,
        trained=frozenset() if run.training.method == "LoRA" else trained_parts(stages),
    )
    chosen.prepare(model)
    sources = find_sources(run, snapshot, held_out, store=store, workdir=workdir)
    work = work_of(run, stages, prompts=len(sample_prompts(run, snapshot)), painted=sources.painted)
    meter = Meter(reporter, total=work.total)
    log.info("training %s in %s", run.digest, profile)
    with (
        Trackers(run, stages, store=store, folder=workdir / "trackers") as trackers,
        _checkpoints(
            run, store=store, reporter=reporter, workdir=workdir, apart=chosen.apart
        ) as checkpoints,
    ):
        state = fitted(checkpoints.resume(stages), run.training.optimizer)
        place_of_work = Place(model, placement, base, store, reporter, workdir)
        feeds = _feeds(run, sources, stages, state, place_of_work, meter=meter, work=work)
        bench = Bench(
            run=run,
            stages=stages,
            placement=placement,
            model=model,
            weights=_weights(run, model, stages, chosen),
            chosen=chosen,
            feeds=feeds,
            snapshot=snapshot,
            store=store,
            reporter=reporter,
            workdir=workdir,
            checkpoints=checkpoints,
            record=Record(state.losses, state.validations) if state else Record(),
            meter=meter,
            work=work,
            trackers=trackers,
            validation=_validation(run, model, placement, feeds),
        )
        continue_from(bench, state)
        for stage in stages:
            if state is not None and is_over(stage, state.position):
                meter.skip(work.update(stage) * stage.steps)
                continue
            updates = run_stage(bench, stage, state)
        checkpoints.wait()
        artifacts, samples = finish(bench, updates)
        trackers.close()
        return TrainOutcome(
            checkpoints.newest,
            artifacts,
            samples,
            profile,
            hints=hints_of(bench),
            notes=trackers.notes,
        )


def _weights(run: TrainRun, model: Model, stages: tuple[Stage, ...], chosen: Chosen) -> Weights:
    """What is trained. A low-rank update comes into the model only now, when everything that
    must not know of it, such as class images, is made."""
    lora = run.training.method == "LoRA"
    weights: Weights = (
        LowRank(model, trained_parts(stages), training=run.training) if lora else OwnWeights(model)
    )
    chosen.ready(model)
    return weights


def _split(whole: Snapshot, run: TrainRun) -> tuple[Snapshot, tuple[Picture, ...]]:
    """What is trained on, and the pictures that are held out."""
    asked = run.training.validation
    if asked is None:
        return whole, ()
    taught, held = hold_out(whole.pictures, images=asked.images, seed=run.training.seed)
    return replace(whole, pictures=taught), held


def _validation(
    run: TrainRun, model: Model, placement: Placement, feeds: Feeds | None
) -> Validation | None:
    """What measures the loss on held-out pictures, if any are."""
    if feeds is None or not feeds.held_out or run.training.denoiser.steps == 0:
        return None
    return Validation(model, feeds.held_out, training=run.training, device=placement.device)


def _feeds(
    run: TrainRun,
    sources: Sources,
    stages: tuple[Stage, ...],
    state: State | None,
    place_of_work: Place,
    *,
    meter: Meter,
    work: Work,
) -> Feeds | None:
    """The batches of what is left to train, or None when every update is done."""
    last = stages[-1]
    if state and (state.position.name, state.position.step) == (last.name, last.steps):
        meter.skip(work.class_images)
        return None
    present, total = 0, sources.painted

    def tell(done: int) -> None:
        nonlocal present
        meter.add(work.class_images * (done - present) / total)
        present = done
        meter.tell("ClassImages", done, total)

    left = [stage for stage in stages if state is None or not is_over(stage, state.position)]
    return gather(run, sources, left, place_of_work, on_painted=tell)


def _checkpoints(
    run: TrainRun, *, store: Store, reporter: Reporter, workdir: Path, apart: str = ""
) -> Checkpoints:
    return Checkpoints(
        store,
        run_prefix=_run_prefix(run) + apart,
        run_digest=run.digest,
        folder=workdir / "checkpoints",
        asked=run.checkpoints,
        on_saved=reporter.saved,
    )


def _found(
    run: TrainRun,
    stages: tuple[Stage, ...],
    *,
    store: Store,
    reporter: Reporter,
    workdir: Path,
) -> TrainOutcome | None:
    artifacts = find_published(run, store, run_prefix=_run_prefix(run), stages=stages)
    if artifacts is None:
        return None
    last = stages[-1]
    key = f"{samples_prefix(run, last.name, last.steps)}/{BEFORE_AFTER}"
    samples = store.uri_of(key) if store.stat(key) else None
    with _checkpoints(run, store=store, reporter=reporter, workdir=workdir) as checkpoints:
        return TrainOutcome(checkpoints.farthest(stages), artifacts, samples, "none")


def _run_prefix(run: TrainRun) -> str:
    return layout.run(layout.session(run.session.namespace, run.session.name), run.digest)
