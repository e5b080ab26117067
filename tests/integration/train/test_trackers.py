"""Trackers with their real libraries, and what a tracker that is away or lies does to training."""

import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import token_variable
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_api.v1alpha1.publish import Trackers
from kubebooth_store import read_manifest

from tests.tiny.folder_session import SESSION, FolderSession

TRAINING: dict[str, Any] = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 6, "learningRate": 1e-3},
    "validation": {"everySteps": 2},
}
SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 3}
KEY = SecretKeyRef(name="trackers", key="token")
SECRET = "very-secret-value-0123456789-0123456789abcdef"  # 45 characters, as W&B wants 40 at least


def run_of(session: FolderSession, **trackers: Any) -> Any:
    asked = Trackers.parse({"tensorBoard": False, **trackers})
    return session.run(TRAINING, samples=SAMPLES, trackers=asked)


def folder_of(session: FolderSession, run: Any) -> Path:
    return session.root / SESSION / "runs" / run.digest[7:19]


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(token_variable(KEY), SECRET)


def event_files(session: FolderSession, run: Any) -> dict[str, bytes]:
    top = folder_of(session, run) / "tensorboard"
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def test_tensorboard_files_stand_in_the_store_and_are_made_whole_again(session: FolderSession):
    run = run_of(session, tensorBoard=True)
    session.train(run)
    whole = event_files(session, run)
    assert {name.split("/")[0] for name in whole} == {"training", "validation", "samples"}
    assert sum(name.startswith("samples/") for name in whole) == 2
    for path in (folder_of(session, run) / "tensorboard").rglob("events*"):
        path.unlink()
    session.store.delete_prefix(f"{SESSION}/runs/{run.digest[7:19]}/artifacts")
    session.train(run)
    assert event_files(session, run) == whole


class Mlflow(http.server.BaseHTTPRequestHandler):
    """Answers nothing for a long while, as an overloaded server does."""

    def do_GET(self) -> None:
        time.sleep(60)

    do_POST = do_GET  # noqa: N815 (name of the parent's)

    def log_message(self, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def hanging() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mlflow)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def refusing() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://user:{SECRET}@127.0.0.1:{free.getsockname()[1]}"


def published(session: FolderSession, outcome: Any) -> bool:
    return read_manifest(session.store, session.store.key_of(outcome.artifacts[0].uri)) is not None


def test_a_tracker_that_hangs_is_left_behind_with_a_word(
    session: FolderSession, hanging: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kubebooth_trainer.train.trackers.LAST_WORDS_S", 1.0)
    outcome = session.train(run_of(session, mlflow={"trackingUri": hanging}))
    assert published(session, outcome)
    assert "mlflow was not told everything" in outcome.notes[0]


def test_a_tracker_that_is_away_is_told_once_and_no_secret_is_in_the_words(
    session: FolderSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kubebooth_trainer.train.trackers.LAST_WORDS_S", 30.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    where = refusing()
    tracker = {"trackingUri": where, "tokenSecretRef": {"name": KEY.name, "key": KEY.key}}
    with caplog.at_level(logging.DEBUG):
        outcome = session.train(run_of(session, mlflow=tracker))
    assert published(session, outcome)
    assert len(outcome.notes) == 1
    told = json.dumps([outcome.notes, [vars(r) for r in caplog.records]], default=str)
    assert "mlflow was not told everything" in told
    assert SECRET not in told
    assert len([r for r in caplog.records if "tracker failed" in r.message]) == 1


def test_without_its_token_a_tracker_is_told_nothing_and_training_goes_on(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(token_variable(KEY))
    key = {"name": KEY.name, "key": KEY.key}
    outcome = session.train(run_of(session, wandb={"project": "kubebooth", "apiKeySecretRef": key}))
    assert published(session, outcome)
    assert outcome.notes == ("wandb is told nothing: key token of Secret trackers is empty",)
