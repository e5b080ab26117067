"""The worker command killed with -9 at random moments, again and again, changes no bit."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import TrainRun

from tests.tiny.deaths import (
    Death,
    ending,
    forked,
    killed,
    random_deaths,
    undisturbed,
    with_own_store,
    work,
)
from tests.tiny.folder_session import SESSION, FolderSession, folder_session
from tests.tiny.models import write_model
from tests.tiny.pipeline import write_pictures

SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 9}
CHECKPOINTS = {"everySteps": 4, "keepLast": 2, "keepBest": 1}
PRIOR = {"classPrompt": "a square", "numImages": 5, "inferenceSteps": 1}
EVERYTHING = {
    "priorPreservation": PRIOR,
    "batchSize": 2,
    "gradientAccumulation": 2,
    "captionDropout": 0.2,
    "validation": {"everySteps": 5},
}


def full(**more: Any) -> dict[str, Any]:
    return {
        "textEncoder": {"steps": 16, "learningRate": 1e-3, "warmupSteps": 2},
        "denoiser": {"steps": 24, "learningRate": 1e-3, "lrScheduler": "Cosine"},
        **EVERYTHING,
        "ema": {"decay": 0.9},
        **more,
    }


def low_rank(**more: Any) -> dict[str, Any]:
    return {**full(), "method": "LoRA", "lora": {"rank": 4, "dropout": 0.1}, **more}


SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15-lora": ("sd15", low_rank(captionShuffle=True)),
    "sdxl-lora": ("sdxl", low_rank(lora={"rank": 2, "targets": ["Attention", "Convolution"]})),
    "flux-lora": ("flux-dev", low_rank(minSnrGamma=None)),
}
VARIANTS = ("sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev")
METHODS = {"full": full, "lora": low_rank}
MODES: dict[str, dict[str, Any]] = {
    "staged": {},
    "discard": {"textEncoder": {"steps": 16, "learningRate": 1e-3, "mode": "JointDiscard"}},
    "joint": {"textEncoder": {"steps": 16, "learningRate": 1e-3, "mode": "Joint"}},
    "denoiser": {"textEncoder": {"steps": 0}},
    "text": {
        "denoiser": {"steps": 0},
        "textEncoder": {"steps": 24, "learningRate": 1e-3},
        "ema": None,
        "validation": None,
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"priorPreservation": None, "ema": None, "gradientAccumulation": 1, "batchSize": 1},
    "all": {},
    "adafactor": {"optimizer": "Adafactor"},
    "prodigy": {"optimizer": "Prodigy"},
}


def is_sound(variant: str, mode: str, options: str) -> bool:
    """Every mode with every option would take hours: options vary with the stages as usual."""
    return options == "all" or mode == "staged"


LONG = [
    (variant, method, mode, options)
    for variant in VARIANTS
    for method in METHODS
    for mode in MODES
    for options in OPTIONS
    if is_sound(variant, mode, options)
]


def session_of(variant: str, tmp_path: Path) -> FolderSession:
    return folder_session(
        tmp_path / "store",
        base=write_model(tmp_path / "base", variant),
        pictures=write_pictures(tmp_path / "pictures", count=4),
        resolution=64,
        prompts=["a sks square", "a sks square on grass", "a sks square, red", "sks"],
    )


def run_of(session: FolderSession, variant: str, training: dict[str, Any]) -> TrainRun:
    return session.run(training, samples=SAMPLES, checkpoints=CHECKPOINTS, variant=variant)


def test_the_command_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path):
    session = session_of("sd15", tmp_path)
    again = with_own_store(session, tmp_path / "again")
    training = full(offsetNoise=0.05, minSnrGamma=5.0)
    whole = undisturbed(run_of(session, "sd15", training), tmp_path / "whole", root=session.root)
    run = run_of(again, "sd15", training)
    deaths = random_deaths(run, seed=9, count=2)
    assert killed(run, tmp_path / "killed", deaths, root=again.root) == whole
    assert any(name.startswith("artifacts/") for name in whole)


def dies_well(variant: str, training: dict[str, Any], tmp_path: Path, *, seed: int) -> None:
    session = session_of(variant, tmp_path)
    again = with_own_store(session, tmp_path / "again")
    run, other = (run_of(one, variant, training) for one in (session, again))
    assert forked(run, root=session.root, death=None) == 0
    for death in random_deaths(other, seed=seed, count=3):
        assert forked(other, root=again.root, death=death) == -signal.SIGKILL, death
    assert forked(other, root=again.root, death=None) == 0
    whole = ending(run, session.root)
    assert any(name.startswith("artifacts/") for name in whole)
    assert ending(other, again.root) == whole


@pytest.mark.parametrize("case", sorted(SHORT))
def test_killed_at_random_steps_a_low_rank_run_ends_with_the_same_bits(case: str, tmp_path: Path):
    variant, training = SHORT[case]
    dies_well(variant, training, tmp_path, seed=len(case))


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids="-".join)
def test_killed_at_random_steps_every_combination_ends_with_the_same_bits(
    case: tuple[str, str, str, str], tmp_path: Path
):
    variant, method, mode, options = case
    training = METHODS[method](**{**OPTIONS[options], **MODES[mode]})
    dies_well(variant, training, tmp_path, seed=LONG.index(case))


def test_sigterm_ends_the_worker_as_preempted_with_its_state_saved(tmp_path: Path):
    variant, training = "sd15", full()
    session = session_of(variant, tmp_path)
    run = run_of(session, variant, training)
    at = Death("Denoiser", 3)
    code, log = work(
        run,
        tmp_path / "work",
        until=lambda status: signal.SIGTERM if at.reached(status) else None,
    )
    assert code == ExitCode.PREEMPTED, log
    report = json.loads((tmp_path / "work" / "report.json").read_bytes())
    assert report["outcome"] == "Preempted"
    saved = report["checkpoint"]
    assert (saved["stage"], saved["step"] >= 3) == ("Denoiser", True)
    assert f"step {saved['step']} of 24" in report["message"]
    folder = session.root / SESSION / "runs" / run.digest[7:19] / "checkpoints"
    assert (folder / f"Denoiser-{saved['step']:08d}" / "manifest.json").exists()
