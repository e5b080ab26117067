"""A folder store with a tiny base model, and Runs that ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import RUN, PrepareRun, PurgeRun
from kubebooth_store import Store, open_store, publish
from kubebooth_trainer.prepare.stage import PrepareOutcome, prepare
from kubebooth_trainer.reporter import Reporter

from tests.unit.worker.corpus import encoded, picture, tiny_model

UPLOADS = "sessions/default/demo/uploads"


@dataclass(frozen=True)
class Booth:
    """A store on disk and the way to prepare from it."""

    store: Store
    root: Path
    workdir: Path

    def asked(self, **changes: Any) -> dict[str, Any]:
        """The JSON of a Prepare run."""
        return {
            "kind": "Prepare",
            "session": {"namespace": "default", "name": "demo"},
            "store": {"uri": self.store.uri},
            "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/tiny"}}},
            "concepts": [{"name": "cat", "token": "sks", "className": "cat"}],
            "resolution": 64,
            "preprocess": {"minImages": 1},
            **changes,
        }

    def run(self, **changes: Any) -> PrepareRun:
        """A Prepare run."""
        run = RUN.validate_python(self.asked(**changes), strict=False)
        assert isinstance(run, PrepareRun)
        return run

    def purge_run(self) -> PurgeRun:
        """A Purge run."""
        asked = {key: self.asked()[key] for key in ("session", "store")}
        run = RUN.validate_python({"kind": "Purge", **asked}, strict=False)
        assert isinstance(run, PurgeRun)
        return run

    def upload(self, name: str, data: bytes) -> None:
        """Put a file among the uploads."""
        self.store.write(f"{UPLOADS}/{name}", data)

    def upload_pictures(self, count: int = 3) -> None:
        """`p0.png`, `p1.png`, …"""
        for number in range(count):
            self.upload(f"p{number}.png", encoded(picture(number), "PNG"))

    def prepare(self, **changes: Any) -> PrepareOutcome:
        """Prepare in this process."""
        return prepare(
            self.run(**changes),
            store=self.store,
            reporter=Reporter(first_stage="Prepare"),
            workdir=self.workdir,
        )

    def dataset(self, outcome: PrepareOutcome) -> dict[str, Any]:
        """The snapshot's `dataset.json`."""
        import json

        key = self.store.key_of(outcome.dataset.uri)
        found: dict[str, Any] = json.loads(
            self.store.read(f"{key}/dataset.json", max_bytes=1 << 20)
        )
        return found


@pytest.fixture
def booth(tmp_path: Path) -> Booth:
    store = open_store((tmp_path / "store").as_uri())
    store.create_root()
    publish(store, "models/tiny", tiny_model(tmp_path / "model"), kind="model")
    workdir = tmp_path / "work"
    workdir.mkdir()
    return Booth(store, tmp_path / "store", workdir)
