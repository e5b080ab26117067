"""Buckets, several concepts, given class images, the concept stage: from files to a model."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import RUN, PrepareRun, TrainRun, run_digest
from kubebooth_api.v1alpha1.training import Checkpoints, Samples, Training
from kubebooth_store import open_store, publish, read_manifest, read_pointer
from kubebooth_trainer.errors import ConfigurationError, Preempted
from kubebooth_trainer.prepare.stage import PrepareOutcome, prepare
from kubebooth_trainer.reporter import Reporter
from PIL import Image
from safetensors.torch import load_file

from tests.tiny.folder_session import SESSION, FolderSession
from tests.tiny.trainer import start

PICTURES = {
    "pets/cat": [(64, 64), (100, 60), (60, 100), (96, 60)],
    "pets/dog": [(64, 64), (60, 96)],
    "class": [(70, 70), (90, 60), (64, 64)],
    "styles": [(64, 64), (60, 100)],
}
CONCEPTS = [
    {
        "name": name,
        "token": token,
        "className": name,
        "repeats": repeats,
        "sources": [{"store": {"key": f"pets/{name}"}}],
    }
    for name, token, repeats in (("cat", "sks", 1), ("dog", "zwx", 2))
]
TRAINING: dict[str, Any] = {
    "textEncoder": {"steps": 4, "learningRate": 1e-3},
    "denoiser": {"steps": 7, "learningRate": 1e-3},
    "priorPreservation": {
        "classPrompt": "an animal",
        "numImages": 8,
        "inferenceSteps": 1,
        "sources": [{"store": {"key": "class"}}],
    },
    "conceptStage": {"sources": [{"store": {"key": "styles"}}], "steps": 3, "learningRate": 1e-3},
    "batchSize": 2,
    "gradientAccumulation": 2,
    "captionDropout": 0.2,
    "ema": {"decay": 0.9},
}
SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 0, "prompts": ["sks cat"]}


@dataclass(frozen=True)
class Prepared:
    """A prepared session and the Run that trains on it."""

    session: FolderSession
    outcome: PrepareOutcome

    def run(self, training: dict[str, Any], **more: Any) -> TrainRun:
        parsed, plain = Training.parse(training), self.session.run({}, samples=SAMPLES)
        given = (self.outcome.class_images, self.outcome.concept_images)
        digests = [one.digest if one else None for one in given]
        return plain.model_copy(
            update={
                "training": parsed,
                "checkpoints": Checkpoints.parse({"everySteps": 2}),
                "samples": Samples.parse(SAMPLES),
                "class_images": given[0],
                "concept_images": given[1],
                "digest": run_digest(
                    training=parsed,
                    variant="sd15",
                    resolution=64,
                    dataset_digest=self.outcome.dataset.digest,
                    base_model_digest=self.outcome.base_model.digest,
                    class_images_digest=digests[0],
                    concept_images_digest=digests[1],
                ),
                **more,
            }
        )

    def forget(self, *kinds: str) -> None:
        for kind in kinds:
            self.session.store.delete_prefix(f"{SESSION}/{kind}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Prepared:
    root = tmp_path_factory.mktemp("data") / "store"
    root.mkdir()
    store = open_store(root.as_uri())
    publish(store, "models/base", tiny_base, kind="model")
    random = np.random.default_rng(5)
    for folder, sizes in PICTURES.items():
        (root / folder).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"{folder}, sks zwx {number}, red")
    asked = RUN.validate_python(
        {
            "kind": "Prepare",
            "session": {"namespace": "default", "name": "quickstart"},
            "store": {"uri": store.uri},
            "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/base"}}},
            "concepts": CONCEPTS,
            "resolution": 64,
            "preprocess": {"buckets": {"step": 16}, "minEdge": 16},
            "classSources": TRAINING["priorPreservation"]["sources"],
            "conceptSources": TRAINING["conceptStage"]["sources"],
        },
        strict=False,
    )
    assert isinstance(asked, PrepareRun)
    reporter = Reporter(first_stage="Prepare")
    outcome = prepare(asked, store=store, reporter=reporter, workdir=root.parent)
    dataset = outcome.base_model.model_copy(
        update={"uri": outcome.dataset.uri, "digest": outcome.dataset.digest}
    )
    session = FolderSession(root, store, outcome.base_model, dataset, 64)
    return Prepared(session, outcome)


@pytest.fixture
def clean(prepared: Prepared) -> Iterator[Prepared]:
    yield prepared
    prepared.forget("runs", "cache", "class-images")


class Stages(Reporter):
    """Remembers what was told."""

    def __init__(self, *, stop_at: tuple[str, int] = ("", 0)) -> None:
        super().__init__(first_stage="TextEncoder")
        self.told: list[tuple[str, int, int]] = []
        self._stop_at = stop_at

    def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
        super().advance(stage, step, total_steps, **more)
        self.told.append((stage, step, total_steps))
        if (stage, step) == self._stop_at:
            self.stop.set()


def test_all_kinds_of_pictures_train_and_a_killed_run_ends_with_the_same_bits(clean: Prepared):
    run, session = clean.run(TRAINING), clean.session
    reporter = Stages()
    whole = session.train(run, reporter=reporter)
    stages = list(dict.fromkeys(stage for stage, _, _ in reporter.told[1:]))
    assert stages == ["ClassImages", "TextEncoder", "Concept", "Denoiser", "Samples", "Publish"]
    painted = {total for stage, _, total in reporter.told if stage == "ClassImages"}
    assert len(painted) == 1
    assert 5 <= painted.pop() < 8 + 3
    clean.forget("runs", "cache", "class-images")
    deaths = ["ClassImages", "TextEncoder 3", "Concept 2", "Denoiser 5"]
    for death in [*deaths, None]:
        process, lines = start(session.root, run)
        with lines:
            while True:
                try:
                    line = lines.recv()
                except EOFError:
                    break
                if death and line.startswith(death):
                    os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if death else ExitCode.DONE), death
    key = f"{SESSION}/runs/{run.digest[7:19]}/artifacts/diffusers/current.json"
    pointer = read_pointer(session.store, key)
    assert pointer is not None
    assert pointer[0]["digest"] == whole.artifacts[0].digest
    assert pointer[0]["updates"] == {"TextEncoder": 4, "Concept": 3, "Denoiser": 7}


def test_the_concept_stage_trains_the_text_encoder_further_and_alone(clean: Prepared):
    alone = {**TRAINING, "textEncoder": {"steps": 0}, "denoiser": {"steps": 1}}
    del alone["priorPreservation"]
    run = clean.run(alone, class_images=None)
    outcome = clean.session.train(run)
    folder = clean.session.path_of(outcome.artifacts[0].uri)
    (after,) = (folder / "text_encoder").glob("*.safetensors")
    (before,) = (clean.session.root / "models/base/text_encoder").glob("*.safetensors")
    strip = {k.removeprefix("text_model."): t for k, t in load_file(before).items()}
    now = {k.removeprefix("text_model."): t for k, t in load_file(after).items()}
    assert any(not torch.equal(strip[key], now[key]) for key in strip)
    assert (folder.parents[2] / "checkpoints" / "Concept-00000003").exists()


def test_latents_and_words_are_computed_once_for_all_runs(
    clean: Prepared, monkeypatch: pytest.MonkeyPatch
):
    from kubebooth_trainer.families.sd.model import SdModel

    encoded: list[Any] = []
    plain = SdModel.encode_picture
    monkeypatch.setattr(
        SdModel, "encode_picture", lambda self, p: encoded.append(p.size) or plain(self, p)
    )
    short = {**TRAINING, "textEncoder": {"steps": 0}, "denoiser": {"steps": 2}}
    del short["conceptStage"]
    clean.session.train(clean.run(short, concept_images=None))
    assert len(encoded) >= 6 + 8
    shards = {e.key for e in clean.session.store.list(f"{SESSION}/cache")}
    manifests = [key for key in shards if key.endswith("manifest.json")]
    kinds = {read_manifest(clean.session.store, k.rsplit("/", 1)[0]).kind for k in manifests}
    assert kinds == {"cache"}
    encoded.clear()
    other = clean.run(
        {**short, "denoiser": {"steps": 2, "learningRate": 1e-4}}, concept_images=None
    )
    clean.session.train(other)
    assert encoded == []
    assert {e.key for e in clean.session.store.list(f"{SESSION}/cache")} == shards


def test_a_stop_while_pictures_are_encoded_is_obeyed(clean: Prepared):
    reporter = Stages(stop_at=("TextEncoder", 0))
    run = clean.run({**TRAINING, "priorPreservation": None}, class_images=None)
    with pytest.raises(Preempted, match="encoding pictures"):
        clean.session.train(run, reporter=reporter)


def test_the_text_encoder_stage_trains_at_its_own_resolution(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kubebooth_trainer.families.sd.model import SdModel

    from tests.tiny.folder_session import folder_session
    from tests.tiny.pipeline import write_pictures

    pictures = write_pictures(tmp_path / "pictures", edge=128)
    session = folder_session(tmp_path / "s", base=tiny_base, pictures=pictures, resolution=128)
    seen: list[tuple[int, ...]] = []
    plain = SdModel.losses

    def watch(self: SdModel, latents: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.append((*latents.shape[2:], *more["geometry"][0].target))
        return plain(self, latents, **more)

    monkeypatch.setattr(SdModel, "losses", watch)
    training = {"textEncoder": {"steps": 1, "resolution": 64}, "denoiser": {"steps": 1}}
    session.train(session.run(training, samples=SAMPLES))
    assert seen == [(8, 8, 64, 64), (16, 16, 128, 128)]
    larger = {"textEncoder": {"steps": 1, "resolution": 256}, "denoiser": {"steps": 1}}
    with pytest.raises(ConfigurationError, match=r"textEncoder\.resolution 256 is above"):
        session.train(session.run(larger, samples=SAMPLES))


def test_held_out_pictures_are_never_trained_on(clean: Prepared, monkeypatch: pytest.MonkeyPatch):
    from kubebooth_trainer.train.batches import Feed

    taught: set[str] = set()
    plain = Feed.batch

    def watch(self: Feed, stage: str, step: int, *, part: int) -> Any:
        batch = plain(self, stage, step, part=part)
        taught.update(batch.prompts)
        return batch

    monkeypatch.setattr(Feed, "batch", watch)
    training = {
        "textEncoder": {"steps": 0},
        "denoiser": {"steps": 12},
        "validation": {"images": 2, "everySteps": 12},
    }
    clean.session.train(clean.run(training, class_images=None, concept_images=None))
    assert len(taught) == 4
