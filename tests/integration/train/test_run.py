"""Whole trainings of the tiny model on a folder store."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from kubebooth_api import layout
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.session import Output
from kubebooth_store import read_manifest, read_pointer
from kubebooth_trainer.errors import ConfigurationError, DataError, OutOfMemory, Preempted
from kubebooth_trainer.reporter import Reporter
from PIL import Image
from safetensors.torch import load_file

from tests.tiny.folder_session import SESSION, FolderSession

SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 0}
SHORT = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 3, "learningRate": 1e-3},
}


def short(session: FolderSession, training: dict[str, Any] | None = None, **more: Any) -> TrainRun:
    more.setdefault("samples", SAMPLES)
    return session.run({**SHORT, **(training or {})}, **more)


def weights(session: FolderSession, outcome: Any, component: str = "unet") -> dict[str, Any]:
    folder = session.path_of(outcome.artifacts[0].uri) / component
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return any(not torch.equal(one[key], other[key]) for key in one)


class Watcher(Reporter):
    """Sets `stop` when training reaches a step."""

    def __init__(self, *, stage: str, step: int) -> None:
        super().__init__(first_stage="TextEncoder")
        self.at = (stage, step)
        self.percentages: list[int] = []
        self.stages: list[str] = []

    def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
        super().advance(stage, step, total_steps, **more)
        self.percentages.append(self.status.progress.percentage)
        self.stages.append(stage)
        if (stage, step) == self.at:
            self.stop.set()


def test_a_training_ends_with_a_published_model_that_diffusers_reads(session: FolderSession):
    run = short(session)
    outcome = session.train(run)
    (artifact,) = outcome.artifacts
    prefix = session.store.key_of(artifact.uri)
    manifest = read_manifest(session.store, prefix)
    assert manifest is not None
    assert manifest.digest == artifact.digest
    assert artifact.size == manifest.size_bytes
    assert prefix == layout.artifact(layout.run(SESSION, run.digest), "diffusers", artifact.digest)
    pipe = StableDiffusionPipeline.from_pretrained(
        session.path_of(artifact.uri), local_files_only=True
    )
    assert pipe.unet.config.cross_attention_dim == 16
    card = (session.path_of(artifact.uri) / "README.md").read_text()
    assert run.digest in card
    assert "2 of TextEncoder, 3 of Denoiser" in card


def test_both_stages_train_what_they_should_and_the_vae_stays(
    session: FolderSession, tiny_base: Path
):
    outcome = session.train(short(session))
    folder = session.path_of(outcome.artifacts[0].uri)
    for name, trained in (
        ("unet/diffusion_pytorch_model", True),
        ("text_encoder/model", True),
        ("vae/diffusion_pytorch_model", False),
    ):
        before = load_file(tiny_base / f"{name}.safetensors")
        after = load_file(folder / f"{name}.safetensors")
        after = {key.removeprefix("text_model."): t for key, t in after.items()}
        before = {key.removeprefix("text_model."): t for key, t in before.items()}
        assert differ(before, after) is trained


@pytest.mark.parametrize(
    ("training", "unet", "text"),
    [
        ({"textEncoder": {"steps": 0}}, True, False),
        ({"denoiser": {"steps": 0}}, False, True),
        ({"textEncoder": {"steps": 2, "mode": "JointDiscard"}, "denoiser": {"steps": 0}},
         False, True),
        ({"textEncoder": {"steps": 2, "mode": "Joint", "learningRate": 1e-3}}, True, True),
    ],
)  # fmt: skip
def test_a_stage_of_no_steps_or_a_discarded_part_leaves_the_base_weights(
    session: FolderSession, tiny_base: Path, training: dict[str, Any], unet: bool, text: bool
):
    outcome = session.train(short(session, training))
    before = load_file(tiny_base / "unet" / "diffusion_pytorch_model.safetensors")
    assert differ(before, weights(session, outcome)) is unet
    before = load_file(tiny_base / "text_encoder" / "model.safetensors")
    before = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in before.items()}
    assert differ(before, weights(session, outcome, "text_encoder")) is text


def test_training_twice_gives_the_same_bits_and_a_seed_other_ones(
    session: FolderSession, tmp_path: Path
):
    first = session.train(short(session))
    session.store.delete_prefix(SESSION + "/runs")
    again = session.train(short(session))
    assert again.artifacts[0].digest == first.artifacts[0].digest
    assert again.checkpoint.digest == first.checkpoint.digest
    other = session.train(short(session, {"seed": 1}))
    assert differ(weights(session, again), weights(session, other))


def test_a_finished_run_is_found_and_not_trained_again(session: FolderSession):
    run = short(session)
    first = session.train(run)
    reporter = Watcher(stage="", step=0)
    again = session.train(run, reporter=reporter)
    assert again.artifacts == first.artifacts
    assert again.samples == first.samples
    assert reporter.stages == []


def test_raising_the_steps_goes_on_from_the_newest_checkpoint(session: FolderSession):
    session.train(short(session))
    more = short(session, {"denoiser": {"steps": 5, "learningRate": 1e-3}})
    assert more.digest == short(session).digest
    reporter = Watcher(stage="", step=0)
    outcome = session.train(more, reporter=reporter)
    assert reporter.stages.count("Denoiser") == 2
    assert outcome.checkpoint.step == 5
    pointer = read_pointer(
        session.store, layout.current(layout.run(SESSION, more.digest), "diffusers")
    )
    assert pointer is not None
    assert pointer[0]["digest"] == outcome.artifacts[0].digest
    assert pointer[0]["updates"] == {"TextEncoder": 2, "Denoiser": 5}


def test_a_checkpoint_labelled_with_a_step_holds_that_many_updates(session: FolderSession):
    constant = {
        "textEncoder": {"steps": 0},
        "denoiser": {"steps": 4, "learningRate": 1e-3, "lrScheduler": "Constant"},
    }
    whole = short(session, constant, checkpoints={"everySteps": 1, "keepLast": 9})
    session.train(whole)
    root = session.root / layout.run(SESSION, whole.digest) / "checkpoints"
    saved = load_file(root / "Denoiser-00000002" / "state.safetensors")
    assert len(list(root.iterdir())) == 4
    session.store.delete_prefix(SESSION + "/runs")
    constant["denoiser"]["steps"] = 2
    two = session.train(short(session, constant))
    ours = {f"weights/denoiser.{key}": t for key, t in weights(session, two).items()}
    assert ours.keys() == {key for key in saved if key.startswith("weights/")}
    assert all(torch.equal(saved[key], t) for key, t in ours.items())


@pytest.mark.parametrize(
    ("stage", "step"), [("TextEncoder", 1), ("TextEncoder", 2), ("Denoiser", 2)]
)
def test_a_wish_to_stop_saves_and_the_next_attempt_ends_with_the_same_bits(
    session: FolderSession, stage: str, step: int
):
    run = short(session)
    reporter = Watcher(stage=stage, step=step)
    with pytest.raises(Preempted, match=f"step {step} of"):
        session.train(run, reporter=reporter)
    saved = reporter.status.checkpoint
    assert saved is not None
    assert (saved.stage, saved.step) == (stage, step)
    resumed = session.train(run)
    session.store.delete_prefix(SESSION + "/runs")
    assert session.train(run).artifacts == resumed.artifacts


@pytest.mark.parametrize("stage", ["ClassImages", "Samples"])
def test_stopping_while_painting_keeps_what_is_done(session: FolderSession, stage: str):
    prior = {"priorPreservation": {"classPrompt": "a dog", "numImages": 20, "inferenceSteps": 1}}
    samples = {**SAMPLES, "imagesPerPrompt": 12}
    run = short(session, prior, samples=samples)
    with pytest.raises(Preempted):
        session.train(run, reporter=Watcher(stage=stage, step=16))
    first = sorted((session.root / SESSION / "class-images").rglob("*.png"))
    stamps = [path.stat().st_mtime_ns for path in first[:16]]
    outcome = session.train(run)
    assert len(first) == (16 if stage == "ClassImages" else 20)
    assert [path.stat().st_mtime_ns for path in first[:16]] == stamps
    assert outcome.samples.endswith("before-after.png")


def test_class_images_are_painted_once_for_all_runs_of_a_session(session: FolderSession):
    prior = {"priorPreservation": {"classPrompt": "a dog", "numImages": 3, "inferenceSteps": 1}}
    session.train(short(session, prior))
    (folder,) = (session.root / SESSION / "class-images").iterdir()
    stamp = (folder / "0000.png").stat().st_mtime_ns
    other = short(session, {**prior, "batchSize": 2})
    reporter = Watcher(stage="", step=0)
    session.train(other, reporter=reporter)
    assert [p.name for p in (session.root / SESSION / "class-images").iterdir()] == [folder.name]
    assert (folder / "0000.png").stat().st_mtime_ns == stamp
    assert {p.name for p in folder.iterdir()} == {
        "0000.png", "0001.png", "0002.png", "manifest.json"
    }  # fmt: skip


def test_broken_class_images_are_painted_again(session: FolderSession):
    prior = {"priorPreservation": {"classPrompt": "a dog", "numImages": 2, "inferenceSteps": 1}}
    session.train(short(session, prior))
    (folder,) = (session.root / SESSION / "class-images").iterdir()
    good = (folder / "0001.png").read_bytes()
    (folder / "0001.png").write_bytes(b"broken")
    session.train(short(session, {**prior, "batchSize": 2}))
    assert (folder / "0001.png").read_bytes() == good


def test_progress_never_falls_and_names_every_stage_in_order(session: FolderSession):
    prior = {"priorPreservation": {"classPrompt": "a dog", "numImages": 2, "inferenceSteps": 1}}
    reporter = Watcher(stage="", step=0)
    session.train(short(session, prior, samples={**SAMPLES, "everySteps": 2}), reporter=reporter)
    assert reporter.percentages == sorted(reporter.percentages)
    assert 95 <= reporter.percentages[-1] <= 99
    order = list(dict.fromkeys(reporter.stages[1:]))
    assert order == ["ClassImages", "TextEncoder", "Denoiser", "Samples", "Publish"]
    told = reporter.status
    assert told.samples is not None
    assert told.checkpoint is not None


def test_samples_on_the_way_and_at_the_end_are_published(session: FolderSession):
    outcome = session.train(short(session, samples={**SAMPLES, "everySteps": 2}))
    final = session.path_of(outcome.samples).parent
    names = {path.name for path in final.iterdir()}
    assert names == {
        "before-after.png", "contact-sheet.png", "loss.png", "metrics.jsonl", "manifest.json"
    }  # fmt: skip
    lines = [json.loads(line) for line in (final / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("TextEncoder", 1), ("TextEncoder", 2), ("Denoiser", 1), ("Denoiser", 2), ("Denoiser", 3)
    ]  # fmt: skip
    assert {path.name for path in final.parent.iterdir()} == {
        "Denoiser-00000002", "Denoiser-00000003"
    }  # fmt: skip
    with Image.open(final / "before-after.png") as picture:
        assert picture.width >= 700


def test_a_loss_that_explodes_is_told_with_step_and_pictures_and_nothing_is_published(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    from kubebooth_trainer.families.sd.model import SdModel

    plain, calls = SdModel.losses, iter(range(100))

    def explode(self: SdModel, latents: torch.Tensor, **more: Any) -> torch.Tensor:
        losses = plain(self, latents, **more)
        return losses * float("nan") if next(calls) == 3 else losses

    monkeypatch.setattr(SdModel, "losses", explode)
    run = short(session, checkpoints={"everySteps": 1})
    with pytest.raises(
        ConfigurationError, match=r"step 2 of Denoiser \(pictures: photo \d"
    ) as told:
        session.train(run)
    assert "training.denoiser.learningRate" in told.value.message
    assert told.value.reason == "LossNotFinite"
    assert not (session.root / layout.run(SESSION, run.digest) / "artifacts").exists()
    assert not (session.root / layout.run(SESSION, run.digest) / "samples").exists()


def test_a_broken_picture_is_named_as_the_user_knows_it(session: FolderSession):
    path = next((session.root / SESSION / "datasets").rglob("0001.png"))
    run = short(session)
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(Exception, match=r"0001\.png"):
        session.train(run)


def test_every_wanted_output_is_published_in_its_precision(session: FolderSession):
    outputs = (
        Output(name="half", precision="Fp16"),
        Output(name="full", precision="Fp32"),
        Output(name="single", format="Safetensors"),
    )
    outcome = session.train(short(session, outputs=outputs))
    assert [artifact.name for artifact in outcome.artifacts] == ["half", "full"]
    assert outcome.artifacts[0].size < outcome.artifacts[1].size
    only = short(session, outputs=(Output(name="half", precision="Bf16"),))
    again = session.train(only)
    assert again.artifacts[0].digest != outcome.artifacts[0].digest


def test_a_base_model_that_is_none_is_refused_by_file(session: FolderSession):
    run = short(session)
    fake = run.model_copy(update={"base_model": session.dataset})
    with pytest.raises(DataError, match=r"model_index\.json is missing"):
        session.train(fake)


def test_no_thread_outlives_a_training(session: FolderSession):
    session.train(short(session))
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_told_with_cures(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def exhaust(*_: Any, **__: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr("kubebooth_trainer.families.sd.model.SdModel.losses", exhaust)
    with pytest.raises(OutOfMemory, match=r"memory\.allowLora: true.*training\.batchSize"):
        session.train(short(session))


def test_a_fault_of_ours_is_not_dressed_up_as_out_of_memory(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("kubebooth_trainer.families.sd.model.SdModel.losses", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        session.train(short(session))
