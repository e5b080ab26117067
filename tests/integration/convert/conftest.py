"""The real command as a process of its own, a tiny model, and a real SeaweedFS."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import REPORT_LIMIT_BYTES, RunReport
from kubebooth_cluster.weed import Weed
from kubebooth_store import Store, open_store, publish
from kubebooth_trainer.__main__ import main

from tests.integration.store.liar import Liar
from tests.tiny.pipeline import tiny_pipeline


def environment() -> dict[str, str]:
    """What a command needs of ours."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "OMP_NUM_THREADS": "1",
    }


def command(
    *words: str | Path,
    before: Callable[[], None] | None = None,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `kubebooth-trainer` to its end; `before` runs in the child first."""
    return subprocess.run(
        [sys.executable, "-m", "kubebooth_trainer", *map(str, words)],
        env={**environment(), **(more or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=before,
    )


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion in the Diffusers layout."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One server for all tests of this folder."""
    with tempfile.TemporaryDirectory(prefix="kbc-", ignore_cleanup_errors=True) as folder:
        server = Weed(Path(folder), buckets=("tests",))
        try:
            yield server.start()
        finally:
            server.kill()
            server.stop()
            assert server.pid is None


@pytest.fixture
def liar(weed: Weed) -> Iterator[Liar]:
    with Liar(weed.endpoint) as proxy:
        yield proxy


@dataclass(frozen=True)
class Booth:
    """A store with a tiny model in it, and the way to run conversions there."""

    store: Store
    folder: Path
    location: Mapping[str, str]
    keys: Mapping[str, str]

    def asked(self, **changes: Any) -> dict[str, Any]:
        """The JSON of a Convert run."""
        return {
            "kind": "Convert",
            "session": {"namespace": "default", "name": "demo"},
            "store": dict(self.location),
            "source": {
                "name": "tiny",
                "uri": self.store.uri_of("models/tiny"),
                "digest": f"sha256:{'0' * 64}",
                "size": 0,
            },
            "target": {"format": "Safetensors"},
            **changes,
        }

    def run(self, *, timeout: str = "5", **changes: Any) -> RunReport:
        """Run what is asked with changes, within this process; the report it leaves."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        words = self.words(folder, timeout, **changes)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.keys.items():
                patch.setenv(name, value)
            code = main(words)
        return reported(folder, code)

    def run_apart(self, before: Callable[[], None], **changes: Any) -> RunReport:
        """The same in a process of its own, in which `before` runs first."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        words = self.words(folder, "5", **changes)
        return reported(folder, command(*words, before=before, more=self.keys).returncode)

    def words(self, folder: Path, timeout: str, **changes: Any) -> list[str]:
        """The command line of a Run with changes."""
        (folder / "run.json").write_text(json.dumps(self.asked(**changes)))
        files = [str(folder / "run.json"), "--report", str(folder / "report.json")]
        return ["run", *files, "--store-timeout", timeout, "--workdir", str(folder / "work")]

    def through(self, endpoint: str) -> Booth:
        """The same by another way."""
        return Booth(self.store, self.folder, {**self.location, "endpoint": endpoint}, self.keys)

    def keys_below(self, prefix: str) -> list[str]:
        """What stands there."""
        return [entry.key for entry in self.store.list(prefix)]


def reported(folder: Path, code: int) -> RunReport:
    """The report in a folder, which must tell the exit code."""
    data = (folder / "report.json").read_bytes()
    assert 0 < len(data) <= REPORT_LIMIT_BYTES
    report = RunReport.model_validate_json(data)
    assert report.exit_code == code
    return report


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(params=["folder", "s3"])
def booth(request: pytest.FixtureRequest, tmp_path: Path, layout: Path) -> Booth:
    """Each kind of store in turn."""
    if request.param == "folder":
        store = open_store((tmp_path / "store").as_uri(), timeout_s=30)
        store.create_root()
        publish(store, "models/tiny", layout, kind="model")
        return Booth(store, tmp_path, {"uri": store.uri}, {})
    found: Booth = request.getfixturevalue("s3_booth")
    return found


@pytest.fixture
def s3_booth(weed: Weed, tmp_path: Path, layout: Path) -> Booth:
    store = open_store(
        f"s3://tests/{uuid.uuid4().hex[:12]}",
        endpoint=weed.url,
        access_key=weed.access_key,
        secret_key=weed.secret_key,
        timeout_s=30,
    )
    publish(store, "models/tiny", layout, kind="model")
    return Booth(
        store,
        tmp_path,
        {"uri": store.uri, "endpoint": weed.url},
        {"AWS_ACCESS_KEY_ID": weed.access_key, "AWS_SECRET_ACCESS_KEY": weed.secret_key},
    )
