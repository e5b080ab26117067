"""kill -9 of a real training process, at any step and again and again, changes no bit."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import TrainRun
from kubebooth_store import read_pointer

from tests.tiny.folder_session import SESSION, FolderSession
from tests.tiny.trainer import start

TRAINING = {
    "textEncoder": {"steps": 12, "learningRate": 1e-3, "warmupSteps": 2},
    "denoiser": {"steps": 18, "learningRate": 1e-3, "lrScheduler": "Cosine"},
    "priorPreservation": {"classPrompt": "a dog", "numImages": 5, "inferenceSteps": 2},
    "batchSize": 2,
    "gradientAccumulation": 2,
    "captionDropout": 0.2,
    "offsetNoise": 0.05,
    "minSnrGamma": 5.0,
    "ema": {"decay": 0.9},
}
SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 7}
CHECKPOINTS = {"everySteps": 3, "keepLast": 2}


def run_of(session: FolderSession) -> TrainRun:
    return session.run(TRAINING, samples=SAMPLES, checkpoints=CHECKPOINTS)


def attempt(session: FolderSession, run: TrainRun, *, until: Callable[[str], int | None]) -> int:
    """One process; `until` may answer a line with a signal to send. Its exit code."""
    process, lines = start(session.root, run)
    with lines:
        while True:
            try:
                line = lines.recv()
            except EOFError:
                break
            wanted = until(line)
            if wanted is not None:
                os.kill(process.pid or 0, wanted)
    process.join()
    return process.exitcode or 0


def result(session: FolderSession, run: TrainRun) -> tuple[str, dict[str, bytes]]:
    """Digest of the artifact, and all that the last sample folder holds."""
    key = f"{SESSION}/runs/{run.digest[7:19]}"
    pointer = read_pointer(session.store, f"{key}/artifacts/diffusers/current.json")
    assert pointer is not None
    folder = session.root / key / "samples" / "Denoiser-00000018"
    told = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    return pointer[0]["digest"], told


@pytest.fixture
def undisturbed(session: FolderSession) -> tuple[str, dict[str, bytes]]:
    """What a training in this process, killed by nobody, ends with."""
    run = run_of(session)
    session.train(run)
    ended = result(session, run)
    session.store.delete_prefix(SESSION + "/runs")
    session.store.delete_prefix(SESSION + "/class-images")
    return ended


def test_killed_at_random_steps_of_both_stages_the_result_is_the_same_to_the_bit(
    session: FolderSession, undisturbed: tuple[str, dict[str, bytes]]
):
    run, dice = run_of(session), random.Random(4)
    deaths = [
        "ClassImages 5",
        f"TextEncoder {dice.randint(4, 11)}",
        "TextEncoder 12",
        f"Denoiser {dice.randint(1, 8)}",
        f"Denoiser {dice.randint(9, 17)}",
        "Publish 0",
    ]
    for death in deaths:
        code = attempt(
            session, run, until=lambda line, at=death: signal.SIGKILL if line == at else None
        )
        assert code == -signal.SIGKILL, death
    assert attempt(session, run, until=lambda line: None) == ExitCode.DONE
    assert result(session, run) == undisturbed


def test_sigterm_finishes_the_step_saves_and_ends_as_preempted(
    session: FolderSession, undisturbed: tuple[str, dict[str, bytes]]
):
    run = run_of(session)
    seen: list[str] = []

    def stop(line: str) -> int | None:
        seen.append(line)
        return signal.SIGTERM if line == "Denoiser 4" else None

    assert attempt(session, run, until=stop) == ExitCode.PREEMPTED
    assert "stopped at step" in seen[-1]
    step = int(seen[-1].split("step ")[1].split()[0])
    saved = session.root / SESSION / "runs" / run.digest[7:19] / "checkpoints"
    assert (saved / f"Denoiser-{step:08d}" / "manifest.json").exists()
    again: list[str] = []
    assert attempt(session, run, until=lambda line: again.append(line)) == ExitCode.DONE
    assert f"Denoiser {step}" not in again
    assert f"Denoiser {step + 1}" in again
    assert result(session, run) == undisturbed


def test_only_as_many_checkpoints_are_kept_as_asked(session: FolderSession, tmp_path: Path):
    run = run_of(session)
    session.train(run)
    kept = session.root / SESSION / "runs" / run.digest[7:19] / "checkpoints"
    assert sorted(p.name for p in kept.iterdir()) == ["Denoiser-00000015", "Denoiser-00000018"]
