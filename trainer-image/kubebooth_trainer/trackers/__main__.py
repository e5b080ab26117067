"""The process of one tracker: `python -m kubebooth_trainer.trackers mlflow|wandb`, lines on stdin.

It ends with its input. When anything goes wrong it says so in one line on stderr and ends with 1;
the training process then goes on without it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Protocol

from kubebooth_trainer.trackers.lines import LINE, Opening, Picture, Scalars

NICE = 10


class Follower(Protocol):
    """A run as a tracker shows it."""

    def scalars(self, line: Scalars) -> None:
        """Take readings."""

    def picture(self, line: Picture) -> None:
        """Take a sheet."""

    def close(self) -> None:
        """Send what is left, and end the run."""


def main(words: list[str]) -> int:
    """Follow until the input ends."""
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        opening = LINE.validate_json(sys.stdin.readline())
        if not isinstance(opening, Opening):
            raise ValueError("the first line opens")
        follower = _opened(words[0], opening)
        for text in sys.stdin:
            line = LINE.validate_json(text)
            if isinstance(line, Scalars):
                follower.scalars(line)
            if isinstance(line, Picture):
                follower.picture(line)
                Path(line.path).unlink(missing_ok=True)
        follower.close()
    except Exception as error:  # noqa: BLE001 (whatever a tracker's library raises ends here)
        told = " ".join(str(error).split())
        print(f"{type(error).__name__}: {told}", file=sys.stderr, flush=True)
        return 1
    return 0


def _opened(kind: str, opening: Opening) -> Follower:
    if kind == "mlflow":
        from kubebooth_trainer.trackers.mlflow_run import MlflowRun

        return MlflowRun(opening)
    from kubebooth_trainer.trackers.wandb_run import WandbRun

    return WandbRun(opening)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # A library's threads and exit handlers may hang; there is nothing left to save.
    os._exit(code)
