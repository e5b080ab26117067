"""Whole trainings of every variant with a UNet, from its layout to a layout that others read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from kubebooth_api.v1alpha1.session import Output
from kubebooth_trainer.errors import DataError, Preempted
from kubebooth_trainer.families import files
from kubebooth_trainer.reporter import Reporter

from tests.tiny.folder_session import SESSION, FolderSession, folder_session
from tests.tiny.models import write_model
from tests.tiny.pipeline import write_pictures

VARIANTS = ("sd15", "sd21-512", "sd21-768", "sdxl")
SAMPLES = {"inferenceSteps": 2, "imagesPerPrompt": 1, "everySteps": 0, "negativePrompt": "a cat"}
SHORT: dict[str, Any] = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 2, "learningRate": 1e-3},
    "priorPreservation": {"classPrompt": "a dog", "numImages": 2, "inferenceSteps": 2},
    "batchSize": 2,
    "minSnrGamma": 5.0,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {variant: write_model(root / variant, variant) for variant in VARIANTS}


def session_on(tmp_path: Path, base: Path) -> FolderSession:
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


def differ(folder: Path, base: Path, component: str) -> bool:
    one, other = tensors(folder, component), tensors(base, component)
    assert one.keys() == other.keys()
    return any(not torch.equal(t, other[key]) for key, t in one.items())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_trained_and_read_back_with_equal_weights(
    tmp_path: Path, bases: dict[str, Path], variant: str
):
    session = session_on(tmp_path, bases[variant])
    run = session.run(SHORT, samples=SAMPLES, variant=variant)
    outcome = session.train(run)
    folder = session.path_of(outcome.artifacts[0].uri)
    for component in ("unet", "text_encoder"):
        assert differ(folder, bases[variant], component)
    assert not differ(folder, bases[variant], "vae")
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for component in ("unet", "text_encoder", "vae"):
        ours = tensors(folder, component)
        theirs = getattr(pipe, component).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[key]) for key, t in ours.items())
    if variant == "sdxl":
        assert not differ(folder, bases[variant], "text_encoder_2")
    pipe.set_progress_bar_config(disable=True)
    painted = pipe("a sks dog", height=64, width=64, num_inference_steps=2, output_type="pt")
    assert torch.isfinite(painted.images).all()


@pytest.mark.parametrize("variant", ["sd21-768", "sdxl"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    tmp_path: Path, bases: dict[str, Path], variant: str
):
    session = session_on(tmp_path, bases[variant])
    run = session.run(SHORT, samples=SAMPLES, variant=variant)

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


def test_the_notebooks_joint_stage_discards_the_denoiser_of_sdxl(
    tmp_path: Path, bases: dict[str, Path]
):
    session = session_on(tmp_path, bases["sdxl"])
    joint = {
        "textEncoder": {"steps": 2, "learningRate": 1e-3, "mode": "JointDiscard"},
        "denoiser": {"steps": 0},
    }
    outcome = session.train(session.run(joint, samples=SAMPLES, variant="sdxl"))
    folder = session.path_of(outcome.artifacts[0].uri)
    assert differ(folder, bases["sdxl"], "text_encoder")
    assert not differ(folder, bases["sdxl"], "unet")


def test_a_v_predicting_base_is_trained_to_zero_terminal_snr(
    tmp_path: Path, bases: dict[str, Path]
):
    session = session_on(tmp_path, bases["sd21-768"])
    run = session.run({**SHORT, "zeroTerminalSnr": True}, samples=SAMPLES, variant="sd21-768")
    folder = session.path_of(session.train(run).artifacts[0].uri)
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipe.scheduler.config.rescale_betas_zero_snr is True
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.alphas_cumprod[-1] < 1e-6


def test_half_precision_is_published_from_a_half_precision_base(tmp_path: Path):
    base = write_model(tmp_path / "base", "sdxl", dtype=torch.float16)
    session = session_on(tmp_path, base)
    outputs = (Output(name="kept"), Output(name="whole", precision="Fp32"))
    run = session.run({**SHORT, "textEncoder": {"steps": 0}}, samples=SAMPLES, variant="sdxl",
                      outputs=outputs)  # fmt: skip
    kept, whole = (session.path_of(artifact.uri) for artifact in session.train(run).artifacts)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert files.weight_files(kept, component).dtype == torch.float16
        assert files.weight_files(whole, component).dtype == torch.float32
        half = tensors(whole, component)
        assert all(torch.equal(t, half[key].half()) for key, t in tensors(kept, component).items())


def test_a_base_of_another_variant_is_refused_before_it_is_loaded(
    tmp_path: Path, bases: dict[str, Path]
):
    session = session_on(tmp_path, bases["sd15"])
    with pytest.raises(DataError, match=r"StableDiffusionPipeline.*baseModel\.variant") as told:
        session.train(session.run(SHORT, samples=SAMPLES, variant="sdxl"))
    assert told.value.reason == "VariantMismatch"
