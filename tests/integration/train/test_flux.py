"""Whole trainings of a tiny Flux, from its layout to a layout that diffusers reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.families import files
from kubebooth_trainer.reporter import Reporter

from tests.tiny.folder_session import SESSION, FolderSession, folder_session
from tests.tiny.models import write_model
from tests.tiny.pipeline import write_pictures

SAMPLES = {"inferenceSteps": 2, "imagesPerPrompt": 1, "everySteps": 0, "guidanceScale": 3.5}
SHORT: dict[str, Any] = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 2, "learningRate": 1e-3},
    "priorPreservation": {"classPrompt": "a dog", "numImages": 2, "inferenceSteps": 2},
    "ema": {"decay": 0.9},
    "gradientAccumulation": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "flux", "flux-dev")


@pytest.fixture
def session(tmp_path: Path, base: Path) -> FolderSession:
    return folder_session(
        tmp_path / "store",
        base=base,
        pictures=write_pictures(tmp_path / "pictures"),
        resolution=64,
        prompts=["a photo of a sks dog", "a sks dog on grass", "a sks dog"],
        class_name="dog",
    )


def tensors(folder: Path, component: str) -> dict[str, torch.Tensor]:
    found = dict(files.weight_files(folder, component).tensors())
    return {key.removeprefix("text_model."): t for key, t in found.items()}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_flux_is_trained_and_read_back_with_equal_weights(session: FolderSession, base: Path):
    run = session.run(SHORT, samples=SAMPLES, variant="flux-dev")
    folder = session.path_of(session.train(run).artifacts[0].uri)
    for component, learns in (("transformer", True), ("text_encoder", True), ("vae", False),
                              ("text_encoder_2", False)):  # fmt: skip
        before, after = tensors(base, component), tensors(folder, component)
        assert before.keys() == after.keys()
        assert any(not torch.equal(t, after[key]) for key, t in before.items()) is learns
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs = pipe.transformer.state_dict()
    assert all(torch.equal(t, theirs[key]) for key, t in tensors(folder, "transformer").items())
    pipe.set_progress_bar_config(disable=True)
    painted = pipe("a sks dog", height=64, width=64, num_inference_steps=2, output_type="pt")
    assert torch.isfinite(painted.images).all()


def test_a_stopped_training_of_flux_goes_on_to_the_same_bits(session: FolderSession):
    run = session.run(SHORT, samples=SAMPLES, variant="flux-dev")

    class Stopping(Reporter):
        def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
            super().advance(stage, step, total_steps, **more)
            if (stage, step) in {("TextEncoder", 1), ("Denoiser", 1)}:
                self.stop.set()

    for _ in range(2):
        with pytest.raises(Preempted):
            session.train(run, reporter=Stopping(first_stage="TextEncoder"))
    resumed = session.train(run)
    session.store.delete_prefix(SESSION + "/runs")
    assert session.train(run).artifacts == resumed.artifacts


@pytest.mark.parametrize("form", ["Int8", "Nf4"])
def test_a_low_rank_update_on_a_quantized_base_resumes_exactly(session: FolderSession, form: str):
    training = {
        "method": "LoRA",
        "lora": {"rank": 2},
        "textEncoder": {"steps": 0},
        "denoiser": {"steps": 3, "learningRate": 1e-3},
        "memory": {"quantizedBase": form},
    }
    run = session.run(training, samples=SAMPLES, variant="flux-dev")

    class Stopping(Reporter):
        def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
            super().advance(stage, step, total_steps, **more)
            if (stage, step) == ("Denoiser", 1):
                self.stop.set()

    with pytest.raises(Preempted):
        session.train(run, reporter=Stopping(first_stage="Denoiser"))
    resumed = session.train(run)
    session.store.delete_prefix(SESSION + "/runs")
    assert session.train(run).artifacts == resumed.artifacts
