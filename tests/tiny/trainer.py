"""Trains one Run in a process of its own, so that a test may kill it at any moment.

The processes are forked from a server that has the libraries loaded already: importing them takes
far longer than the tiny trainings.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from kubebooth_api.runs import TrainRun
from kubebooth_store import open_store
from kubebooth_trainer.errors import WorkerError
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train import train


class Telling(Reporter):
    """Tells every reading through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(first_stage="TextEncoder")
        self._pipe = pipe

    def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
        super().advance(stage, step, total_steps, **more)
        self._pipe.send(f"{stage} {step}")


def start(store: Path, run: TrainRun) -> tuple[BaseProcess, Connection]:
    """A process that trains; its pipe gives a line for every reading, and ends with the process.

    SIGTERM asks for a stop. The exit code is that of the error.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(store, run.model_dump_json(), writer))
    process.start()
    writer.close()
    return process, reader


def _train(store: Path, run: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    reporter = Telling(pipe)
    signal.signal(signal.SIGTERM, lambda *_: reporter.stop.set())
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(
                TrainRun.model_validate_json(run),
                store=open_store(f"file://{store}"),
                reporter=reporter,
                workdir=Path(folder),
            )
        except WorkerError as error:
            pipe.send(error.message)
            sys.exit(int(error.exit_code))
