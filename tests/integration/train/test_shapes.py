"""The quickstart examples learn their subject and keep its class, on the model that paints."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.reporter import Reporter
from PIL import Image

from examples.shapes.score import load, score
from tests.tiny.folder_session import ROOT, FolderSession, shapes_session

FULL, LORA = "quickstart.yaml", "quickstart-lora.yaml"

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def example(name: str, **changes: Any) -> dict[str, Any]:
    """Training and samples of an example, with other values under dotted names."""
    spec = yaml.safe_load((ROOT / "examples" / name).read_text())["spec"]
    for path, value in changes.items():
        *outer, last = path.split("__")
        inner = spec["training"]
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return spec


def scores_of(session: FolderSession, spec: dict[str, Any], outcome: Any) -> dict[str, float]:
    """Scores of the published model, or of the base model with the published LoRA."""
    torch.use_deterministic_algorithms(False)
    folder = session.path_of(outcome.artifacts[0].uri)
    if spec["training"].get("method") != "LoRA":
        return score(load(folder), count=4)
    pipe = load(session.root / session.store.key_of(session.base.uri))
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    return score(pipe, count=4)


def trained(tmp_path: Path, spec: dict[str, Any]) -> tuple[FolderSession, Any]:
    session = shapes_session(tmp_path / "store")
    samples = {**spec["samples"], "imagesPerPrompt": 1, "everySteps": 0}
    return session, session.train(session.run(spec["training"], samples=samples))


def assert_learned(scores: dict[str, float]) -> None:
    assert scores["subject"] >= 0.8, scores
    assert scores["leak"] <= 0.15, scores
    assert scores["accuracy"] >= 0.8, scores


@pytest.mark.parametrize("name", [FULL, LORA])
def test_dreambooth_with_prior_learns_the_subject_and_keeps_the_class(tmp_path: Path, name: str):
    spec = example(name)
    session, outcome = trained(tmp_path, spec)
    assert_learned(scores_of(session, spec, outcome))
    with Image.open(session.path_of(outcome.samples)) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("name", [FULL, LORA])
def test_without_prior_the_subject_leaks_into_its_class(tmp_path: Path, name: str):
    spec = example(name, priorPreservation=None)
    session, outcome = trained(tmp_path, spec)
    scores = scores_of(session, spec, outcome)
    assert scores["subject"] >= 0.8, scores
    assert scores["leak"] >= 0.5, scores


JOINT = {"textEncoder__mode": "Joint", "textEncoder__learningRate": 3e-4, "denoiser__steps": 200}
MODES: dict[str, dict[str, Any]] = {"joint": JOINT, "without-average": {"ema": None}}


@pytest.mark.long
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_stage_mode_learns_the_subject(tmp_path: Path, mode: str):
    spec = example(FULL, **MODES[mode])
    session, outcome = trained(tmp_path, spec)
    assert_learned(scores_of(session, spec, outcome))


class StopsAt(Reporter):
    """Asks for a stop at one update."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(first_stage="TextEncoder")
        self._at = (stage, step)

    def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
        super().advance(stage, step, total_steps, **more)
        if (stage, step) == self._at:
            self.stop.set()


@pytest.mark.long
@pytest.mark.parametrize("name", [FULL, LORA])
def test_a_training_that_was_stopped_in_both_stages_has_learned_the_same(tmp_path: Path, name: str):
    spec = example(name)
    session = shapes_session(tmp_path / "store")
    samples = {**spec["samples"], "imagesPerPrompt": 1, "everySteps": 0}
    run = session.run(spec["training"], samples=samples)
    for stage, step in (("TextEncoder", 47), ("Denoiser", 61)):
        with pytest.raises(Preempted):
            session.train(run, reporter=StopsAt(stage, step))
    outcome = session.train(run)
    assert_learned(scores_of(session, spec, outcome))
