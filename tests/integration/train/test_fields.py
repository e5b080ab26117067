"""Every field of Training changes the result, or only speed and memory, or is refused by name."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.v1alpha1.training import (
    DenoiserStage,
    Memory,
    PriorPreservation,
    TextEncoderStage,
    Training,
)
from kubebooth_trainer.errors import ConfigurationError
from pydantic import BaseModel

from tests.tiny.folder_session import FolderSession, folder_session
from tests.tiny.pipeline import write_pictures, write_tiny

SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 0}
PRIOR = {"classPrompt": "a dog", "numImages": 2, "inferenceSteps": 2}
PLAIN: dict[str, Any] = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 2, "learningRate": 1e-3},
    "priorPreservation": PRIOR,
}
CHANGES: dict[str, Any] = {
    "textEncoder.steps": 3,
    "textEncoder.learningRate": 2e-3,
    "textEncoder.lrScheduler": "Constant",
    "textEncoder.warmupSteps": 1,
    "textEncoder.mode": "JointDiscard",
    "denoiser.steps": 3,
    "denoiser.learningRate": 2e-3,
    "denoiser.lrScheduler": "Constant",
    "denoiser.warmupSteps": 1,
    "priorPreservation.classPrompt": "a cat",
    "priorPreservation.numImages": 3,
    "priorPreservation.weight": 2.0,
    "priorPreservation.inferenceSteps": 3,
    "priorPreservation.guidanceScale": 2.0,
    "optimizer": "Adafactor",
    "batchSize": 2,
    "gradientAccumulation": 2,
    "maxGradNorm": 1e-6,
    "weightDecay": 0.5,
    "mixedPrecision": "Bf16",
    "offsetNoise": 0.1,
    "minSnrGamma": 1.0,
    "ema": {"decay": 0.5},
    "captionDropout": 1.0,
    "captionShuffle": True,
    "captionKeepTokens": 3,
    "timestepSampling": "LogitNormal",
    "validation": {"images": 1},
    "seed": 1,
}
"""Field → a value that must give other weights."""
SPEED_ONLY = {"gradientCheckpointing": "On", "allowNonNativeResolution": True}
"""Field → a value that must give the same weights to the bit."""
REFUSED = {
    "zeroTerminalSnr": True,
    "mixedPrecision": "Fp16",
    "textEncoder.resolution": 128,
    "priorPreservation.sources": [{"store": {"key": "x"}}],
    "guidance": 2.0,
    "conceptStage": {"sources": [{"store": {"key": "x"}}]},
    "memory.quantizedBase": "Int8",
}
"""Field → a value that this version refuses by the field's name."""
ELSEWHERE = {
    "method",
    "lora",
    "resolution",
    "memory.fallback",
    "memory.allow8BitOptimizer",
    "memory.allowOffload",
    "memory.allowLora",
    "compile",
}
"""`method: LoRA`, `lora` and `compile` have tests of their own, `resolution` arrives as
`run.resolution`, and permissions of `memory` need not be made use of."""


def with_change(field: str, value: Any) -> dict[str, Any]:
    parts = field.split(".")
    if len(parts) == 1:
        return {**PLAIN, field: value}
    return {**PLAIN, parts[0]: {**PLAIN.get(parts[0], {}), parts[1]: value}}


def fields(model: type[BaseModel], nested: Mapping[str, type[BaseModel]] = {}) -> Iterator[str]:
    for name, info in model.model_fields.items():
        alias = info.alias or name
        if name in nested:
            yield from (f"{alias}.{inner}" for inner in fields(nested[name]))
        else:
            yield alias


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> FolderSession:
    folder: Path = tmp_path_factory.mktemp("fields")
    return folder_session(
        folder / "store",
        base=write_tiny(folder / "base"),
        pictures=write_pictures(folder / "pictures"),
        resolution=64,
        prompts=["a, b, c, d", "e, f, g, h", "i, j, k, l"],
    )


@pytest.fixture(scope="module")
def plain(one: FolderSession) -> str:
    return digest(one, PLAIN)


def digest(one: FolderSession, training: dict[str, Any]) -> str:
    """Digest of the trained state, without what the model card says."""
    outcome = one.train(one.run(training, samples=SAMPLES))
    folder = one.path_of(outcome.artifacts[0].uri)
    files = sorted(folder.glob("[tu]*/*.safetensors"))
    assert len(files) == 2
    return " ".join(str(hash(path.read_bytes())) for path in files)


def test_no_field_is_forgotten_here():
    nested = {
        "text_encoder": TextEncoderStage,
        "denoiser": DenoiserStage,
        "prior_preservation": PriorPreservation,
        "memory": Memory,
    }
    assert set(fields(Training, nested)) == {*CHANGES, *SPEED_ONLY, *REFUSED, *ELSEWHERE}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_field_that_determines_the_result_changes_it(one: FolderSession, plain: str, field: str):
    changed = with_change(field, CHANGES[field])
    if field == "captionKeepTokens":
        changed["captionShuffle"] = True
        plain = digest(one, with_change("captionShuffle", True))
    assert digest(one, changed) != plain


def test_fields_of_speed_and_memory_change_no_bit(one: FolderSession, plain: str):
    run = one.run({**PLAIN, **SPEED_ONLY}, samples=SAMPLES)
    assert run.digest == one.run(PLAIN, samples=SAMPLES).digest
    one.store.delete_prefix("sessions/default/quickstart/runs")
    assert digest(one, {**PLAIN, **SPEED_ONLY}) == plain


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_refused_field_is_named(one: FolderSession, field: str):
    with pytest.raises(ConfigurationError, match="training." + re.escape(field)):
        one.train(one.run(with_change(field, REFUSED[field]), samples=SAMPLES))


def test_zero_terminal_snr_works_where_the_base_predicts_v(tmp_path: Path):
    other = folder_session(
        tmp_path / "store",
        base=write_tiny(tmp_path / "base", v_prediction=True),
        pictures=write_pictures(tmp_path / "pictures"),
        resolution=64,
    )
    run = other.run({**PLAIN, "zeroTerminalSnr": True}, samples=SAMPLES, variant="sd21-768")
    outcome = other.train(run)
    folder = other.path_of(outcome.artifacts[0].uri)
    scheduler = (folder / "scheduler" / "scheduler_config.json").read_text()
    assert '"rescale_betas_zero_snr": true' in scheduler
    assert '"timestep_spacing": "trailing"' in scheduler
