"""Trains one Run in a process of its own, so that a test may kill it at any moment.

    python -m tests.tiny.trainer STORE_FOLDER RUN.json

A line is printed for every reading; SIGTERM asks for a stop, which ends with code 68.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from kubebooth_api.runs import TrainRun
from kubebooth_store import open_store
from kubebooth_trainer.errors import WorkerError
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train import train


class Printing(Reporter):
    """Tells every reading on standard output."""

    def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
        super().advance(stage, step, total_steps, **more)
        print(f"{stage} {step}", flush=True)


def main() -> int:
    """Train; the exit code is that of the error."""
    root, run = Path(sys.argv[1]), TrainRun.model_validate_json(Path(sys.argv[2]).read_bytes())
    reporter = Printing(first_stage="TextEncoder")
    signal.signal(signal.SIGTERM, lambda *_: reporter.stop.set())
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(run, store=open_store(f"file://{root}"), reporter=reporter, workdir=Path(folder))
        except WorkerError as error:
            print(error.message, flush=True)
            return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
