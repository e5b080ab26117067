"""The real command as a process of its own, against a real SeaweedFS or a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import REPORT_LIMIT_BYTES, RunReport
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.weed import Weed
from kubebooth_store import Store, open_store, publish

from tests.unit.worker.corpus import encoded, picture, tiny_model


@dataclass(frozen=True)
class Place:
    """A store and what a worker needs to reach it."""

    store: Store
    location: Mapping[str, str]
    environment: Mapping[str, str]
    folder: Path
    name: str = "demo"

    @property
    def uploads(self) -> str:
        """Prefix of the session's pictures."""
        return f"sessions/default/{self.name}/uploads"

    def asked(self, **changes: Any) -> dict[str, Any]:
        """The JSON of a Prepare run."""
        return {
            "kind": "Prepare",
            "session": {"namespace": "default", "name": self.name},
            "store": dict(self.location),
            "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/tiny"}}},
            "concepts": [{"name": "cat", "token": "sks", "className": "cat"}],
            "resolution": 64,
            "preprocess": {"minImages": 1, "badFiles": "Exclude"},
            **changes,
        }

    def upload_pictures(self, count: int) -> None:
        """Different small pictures, every third with a caption."""
        for number in range(count):
            stem = f"{self.uploads}/picture {number:03d}"
            self.store.write(f"{stem}.jpg", encoded(picture(number), "JPEG", quality=95))
            if number % 3 == 0:
                self.store.write(f"{stem}.txt", f"sks cat number {number}".encode())

    def upload_heavy(self, count: int) -> None:
        """The same large picture many times: a worker is busy with it for seconds."""
        data = encoded(picture(1, size=(2400, 1800)), "JPEG")
        for number in range(count):
            self.store.write(f"{self.uploads}/heavy {number:03d}.jpg", data)

    def start(
        self, run: Any, *options: str, environment: Mapping[str, str] | None = None
    ) -> Worker:
        """Start the command on a Run (JSON-shaped, or text)."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        file, report = folder / "run.json", folder / "report.json"
        file.write_text(run if isinstance(run, str) else json.dumps(run))
        command = [sys.executable, "-m", "kubebooth_trainer", "run", str(file), *options]
        process = subprocess.Popen(
            command,
            env={
                **_plain_environment(),
                **self.environment,
                "KUBEBOOTH_WORKDIR": str(folder / "work"),
                "KUBEBOOTH_REPORT": str(report),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Worker(process, report)

    def named(self, name: str) -> Place:
        """The same store for another session."""
        return Place(self.store, self.location, self.environment, self.folder, name)


@dataclass(frozen=True)
class Worker:
    """A started command."""

    process: subprocess.Popen[str]
    report_file: Path

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        """Exit code and everything it printed."""
        said, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, said

    def report(self) -> RunReport:
        """What it left."""
        data = self.report_file.read_bytes()
        assert 0 < len(data) <= REPORT_LIMIT_BYTES
        return RunReport.model_validate_json(data)


def _plain_environment() -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
    plain = {name: os.environ[name] for name in kept if name in os.environ}
    return {**plain, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One SeaweedFS for a module, with the tiny model in it."""
    with tempfile.TemporaryDirectory(prefix="kbt-", ignore_cleanup_errors=True) as folder:
        server = Weed(Path(folder), buckets=("kubebooth",))
        try:
            yield on_weed(server.start(), tmp_path_factory.mktemp("s3"))
        finally:
            server.stop()


def on_weed(server: Weed, folder: Path) -> Place:
    """A place on a running server."""
    store = open_store(
        "s3://kubebooth/booth",
        endpoint=server.url,
        access_key=server.access_key,
        secret_key=server.secret_key,
    )
    publish(store, "models/tiny", tiny_model(folder / "model"), kind="model")
    return Place(
        store,
        {"uri": "s3://kubebooth/booth", "endpoint": server.url},
        {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key},
        folder,
    )


@pytest.fixture
def disk(tmp_path: Path) -> Place:
    """A store in a folder, as on a laptop."""
    store = open_store((tmp_path / "store").as_uri())
    store.create_root()
    publish(store, "models/tiny", tiny_model(tmp_path / "model"), kind="model")
    return Place(store, {"uri": store.uri}, {}, tmp_path)


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on."""
    return free_ports(1)[0]
