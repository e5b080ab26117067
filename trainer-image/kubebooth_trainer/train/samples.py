"""Sample pictures: which prompts, with which noise, on which sheets, published where."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from threading import Event

from kubebooth_api import layout
from kubebooth_api.runs import TrainRun
from kubebooth_store import Conflict, Corrupt, Store, publish_files, read_manifest
from PIL import Image

from kubebooth_trainer.families.door import Model, Painting
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.dataset import Snapshot
from kubebooth_trainer.train.painting import paint_all
from kubebooth_trainer.train.sheets import Row

CONTACT_SHEET, BEFORE_AFTER, LOSS, METRICS = (
    "contact-sheet.png",
    "before-after.png",
    "loss.png",
    "metrics.jsonl",
)
MOST_PROMPTS = 16


def sample_prompts(run: TrainRun, snapshot: Snapshot) -> tuple[str, ...]:
    """The prompts asked for, else those that call the subjects and the class prompt."""
    if run.samples.prompts:
        return run.samples.prompts
    return (*snapshot.instance_prompts, *_class_prompts(run, snapshot))[:MOST_PROMPTS]


def note_of(run: TrainRun, snapshot: Snapshot, prompt: str) -> str:
    """What a prompt's row is there to show."""
    if prompt in snapshot.instance_prompts:
        return "the subject: should look like the pictures below"
    if prompt in _class_prompts(run, snapshot):
        return "the class: should stay as it was"
    return ""


def paint_rows(
    model: Model,
    prompts: Sequence[str],
    run: TrainRun,
    *,
    stop: Event,
    on_done: Callable[[int], None],
) -> list[list[Image.Image]]:
    """Pictures of each prompt; noise depends on sample seed, prompt number and picture number."""
    samples, shape = run.samples, model.latent_shape((run.resolution, run.resolution))
    paintings = [
        Painting(
            prompt,
            samples.negative_prompt,
            draws.normal(shape, samples.seed, "sample", row, number),
        )
        for row, prompt in enumerate(prompts)
        for number in range(samples.images_per_prompt)
    ]
    pictures = paint_all(
        model,
        paintings,
        resolution=run.resolution,
        inference_steps=samples.inference_steps,
        guidance_scale=samples.guidance_scale,
        stop=stop,
        on_done=on_done,
    )
    each = samples.images_per_prompt
    return [pictures[start : start + each] for start in range(0, len(pictures), each)]


def rows_of(
    run: TrainRun,
    snapshot: Snapshot,
    prompts: Sequence[str],
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]] | None = None,
) -> list[Row]:
    """Rows of a sheet, labelled."""
    return [
        Row(
            prompt or "(empty prompt)",
            note_of(run, snapshot, prompt) if after else "",
            before[number],
            after[number] if after else (),
        )
        for number, prompt in enumerate(prompts)
    ]


def already_published(store: Store, prefix: str, *, having: str) -> bool:
    """Whether an earlier attempt published samples that have a file."""
    try:
        manifest = read_manifest(store, prefix)
    except Corrupt:
        store.delete_prefix(prefix)
        return False
    return manifest is not None and any(file.path == having for file in manifest.files)


def publish_samples(store: Store, prefix: str, files: Mapping[str, Image.Image | str]) -> None:
    """Publish sheets as PNG and texts as UTF-8; those of another attempt are replaced."""
    named = {name: _bytes(content) for name, content in files.items()}
    try:
        publish_files(store, prefix, named, kind="samples")
    except Conflict:
        store.delete_prefix(prefix)
        publish_files(store, prefix, named, kind="samples")


def samples_prefix(run: TrainRun, stage: str, step: int) -> str:
    """Where the samples of one step stand."""
    session = layout.session(run.session.namespace, run.session.name)
    return layout.samples(layout.run(session, run.digest), stage, step)


def _class_prompts(run: TrainRun, snapshot: Snapshot) -> tuple[str, ...]:
    if run.training.prior_preservation:
        return (run.training.prior_preservation.class_prompt,)
    return tuple(f"a {name}" for name in snapshot.class_names)


def _bytes(content: Image.Image | str) -> bytes:
    if isinstance(content, str):
        return content.encode()
    buffer = io.BytesIO()
    content.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
