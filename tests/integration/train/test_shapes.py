"""The quickstart example learns its subject and keeps its class, on the model that paints."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from examples.shapes.score import load, score
from tests.tiny.folder_session import ROOT, shapes_session


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dreambooth_with_prior_learns_the_subject_and_keeps_the_class(tmp_path: Path):
    spec = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())["spec"]
    session = shapes_session(tmp_path / "store")
    samples = {**spec["samples"], "imagesPerPrompt": 1, "everySteps": 0}
    outcome = session.train(session.run(spec["training"], samples=samples))
    torch.use_deterministic_algorithms(False)
    scores = score(load(session.path_of(outcome.artifacts[0].uri)), count=4)
    assert scores["subject"] >= 0.8, scores
    assert scores["leak"] <= 0.15, scores
    assert scores["accuracy"] >= 0.8, scores
    with Image.open(session.path_of(outcome.samples)) as picture:
        assert picture.format == "PNG"
