"""Runs the real worker command on a folder store, and kills it with -9 where it is told to.

What a run ends with is compared by digest: the artifacts, the samples, the losses and the
TensorBoard file.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kubebooth_api.runs import RUN, TrainRun, WorkerStatus
from kubebooth_store import open_store

from tests.tiny.folder_session import SESSION, FolderSession
from tests.tiny.trainer import start

LOOK_EVERY_S = 0.004
LONGEST_S = 300
COMMAND = [sys.executable, "-m", "kubebooth_trainer"]


@dataclass(frozen=True)
class Death:
    """Where to kill: at the first reading of a stage at or past a step."""

    stage: str
    step: int

    def reached(self, status: WorkerStatus) -> bool:
        progress = status.progress
        return progress.stage == self.stage and progress.step >= self.step > 0


def random_deaths(run: TrainRun, *, seed: int, count: int, margin: int = 6) -> list[Death]:
    """Places to die at, evenly over all updates, none in the last few of a stage."""
    stages = [("TextEncoder", run.training.text_encoder.steps)]
    if run.training.text_encoder.mode == "Joint":
        stages = []
    stages.append(("Denoiser", run.training.denoiser.steps))
    places = [(stage, step) for stage, steps in stages for step in range(1, steps - margin)]
    chosen = sorted(random.Random(seed).sample(range(len(places)), count))
    return [Death(*places[place]) for place in chosen]


def with_own_store(session: FolderSession, root: Path) -> FolderSession:
    """The same session on a copy of its store."""
    shutil.copytree(session.root, root)
    store = open_store(f"file://{root}")

    def moved(uri: str) -> str:
        return store.uri_of(session.store.key_of(uri))

    return replace(
        session,
        root=root,
        store=store,
        base=session.base.model_copy(update={"uri": moved(session.base.uri)}),
        dataset=session.dataset.model_copy(update={"uri": moved(session.dataset.uri)}),
    )


def work(
    run: TrainRun,
    folder: Path,
    *,
    until: Callable[[WorkerStatus], int | None] = lambda status: None,
) -> tuple[int, str]:
    """One worker process; `until` may answer a reading with a signal to send.

    Gives the exit code, negative for a signal, and what it logged.
    """
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    asked = folder / "run.json"
    asked.write_bytes(RUN.dump_json(run, by_alias=True, exclude_none=True))
    port = _free_port()
    words = ["run", str(asked), "--workdir", str(scratch), "--report", str(folder / "report.json")]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [*COMMAND, *words, "--listen", f"127.0.0.1:{port}", "--log", "json"],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            _watch(process, port, until)
            process.wait(timeout=LONGEST_S)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return process.returncode, log.read()


def undisturbed(run: TrainRun, folder: Path, *, root: Path) -> dict[str, str]:
    """What a worker that nobody kills ends with."""
    code, log = work(run, folder)
    assert code == 0, log
    return ending(run, root)


def killed(run: TrainRun, folder: Path, deaths: list[Death], *, root: Path) -> dict[str, str]:
    """What workers that are killed one after the other end with, once one is left in peace."""
    for death in deaths:
        code, log = work(
            run,
            folder,
            until=lambda status, at=death: signal.SIGKILL if at.reached(status) else None,
        )
        assert code == -signal.SIGKILL, f"{death} was never reached: {log}"
    return undisturbed(run, folder, root=root)


def forked(run: TrainRun, *, root: Path, death: Death | None) -> int:
    """One training in a process that was forked with its libraries loaded, killed at a death; its
    exit code, negative for a signal. For many runs: starting the command takes far longer."""
    process, lines = start(root, run)
    with lines:
        try:
            while (line := lines.recv()) is not None:
                if death is not None and line == f"{death.stage} {death.step}":
                    os.kill(process.pid or 0, signal.SIGKILL)
        except EOFError:
            pass
    process.join()
    return process.exitcode or 0


def ending(run: TrainRun, root: Path) -> dict[str, str]:
    """SHA-256 of every file that a finished run leaves but for its words to people and machines.

    Left out are checkpoints, whose retention depends on who died when, and what tells times.
    """
    top = root / SESSION / "runs" / run.digest[7:19]
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file() and _is_compared(path.relative_to(top))
    }


def _is_compared(path: Path) -> bool:
    return path.parts[0] in {"artifacts", "samples", "tensorboard"} and path.name not in {
        "manifest.json",
        "current.json",
    }


def _watch(
    process: subprocess.Popen[bytes], port: int, until: Callable[[WorkerStatus], int | None]
) -> None:
    end = time.monotonic() + LONGEST_S
    while process.poll() is None and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        status = _reading(port)
        wanted = until(status) if status is not None else None
        if wanted is not None:
            process.send_signal(wanted)
            return


def _reading(port: int) -> WorkerStatus | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/progress")
        body = connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        time.sleep(0.05)
        return None
    finally:
        connection.close()
    return WorkerStatus.model_validate_json(body) if body else None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
