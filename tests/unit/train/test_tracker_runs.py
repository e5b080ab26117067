"""What MLflow's and Weights & Biases' own libraries keep of a run, also after a restart."""

import os
import subprocess
import sys
import time
from pathlib import Path

from kubebooth_trainer.trackers.lines import LINE, Opening, Picture, Scalars
from PIL import Image


def follow(kind: str, folder: Path, place: str, steps: range, **environment: str) -> None:
    """The process of a tracker, told of some steps and a sheet."""
    folder.mkdir(exist_ok=True)
    sheet = folder / "sheet.png"
    Image.new("RGB", (8, 8), (200, 10, 10)).save(sheet)
    now_ms = int(time.time() * 1000)
    lines = [
        Opening(place=place, project="kb", run="abc", name="dog", settings={"training.seed": 3}),
        *(Scalars(step=n, time_ms=now_ms, values={"loss": 1 / n}) for n in steps),
        Picture(step=steps[-1], time_ms=now_ms, name="samples", path=str(sheet)),
    ]
    told = b"".join(LINE.dump_json(line, by_alias=True) + b"\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "kubebooth_trainer.trackers", kind],
        input=told,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not sheet.exists()


def test_mlflow_keeps_every_reading_once_and_the_sheet(tmp_path: Path):
    runs = tmp_path / "runs"
    for steps in (range(1, 6), range(3, 9)):
        follow("mlflow", tmp_path / "work", f"file://{runs}", steps, MLFLOW_ALLOW_FILE_STORE="true")
    (losses,) = runs.rglob("metrics/loss")
    told = [line.split() for line in losses.read_text().splitlines()]
    assert [int(step) for _, _, step in told] == list(range(1, 9))
    assert [float(value) for _, value, _ in told] == [1 / n for n in range(1, 9)]
    (seed,) = runs.rglob("params/training.seed")
    assert seed.read_text() == "3"
    assert len(list(runs.rglob("artifacts/samples/sheet.png"))) == 1


def test_wandb_keeps_readings_and_the_sheet_in_its_own_file(tmp_path: Path):
    follow(
        "wandb", tmp_path / "work", "", range(1, 6), WANDB_MODE="offline", WANDB_API_KEY="x" * 40
    )
    (kept,) = (tmp_path / "work").rglob("run-abc.wandb")
    data = kept.read_bytes()
    assert b"training.seed" in data
    assert data.count(b"loss") >= 5
    assert list((tmp_path / "work").rglob("media/images/samples*.png"))
