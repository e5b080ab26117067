"""Follows a run in Weights & Biases, through its own client."""

from __future__ import annotations

import os
from pathlib import Path

import wandb

from kubebooth_trainer.trackers.lines import Opening, Picture, Scalars

INIT_TIMEOUT_S = 60


class WandbRun:
    """One run; that of an earlier attempt is continued, and nothing is doubled."""

    def __init__(self, opening: Opening) -> None:
        if opening.place:
            os.environ["WANDB_BASE_URL"] = opening.place
        self._run = wandb.init(
            project=opening.project,
            entity=opening.entity,
            id=opening.run,
            name=opening.name,
            config=dict(opening.settings),
            resume="allow",
            dir=str(Path.cwd()),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                init_timeout=INIT_TIMEOUT_S,
            ),
        )
        self._first = int(self._run.step)

    def scalars(self, line: Scalars) -> None:
        """Log readings that an earlier attempt did not."""
        if line.step >= self._first:
            self._run.log(dict(line.values), step=line.step)

    def picture(self, line: Picture) -> None:
        """Log a sheet."""
        if line.step >= self._first:
            self._run.log({line.name: wandb.Image(line.path)}, step=line.step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
