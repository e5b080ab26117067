"""Reads a worker's own port until it is busy."""

from __future__ import annotations

import time
import urllib.request

from kubebooth_api.runs import WorkerStatus

from tests.integration.worker.conftest import Worker


def until_busy(worker: Worker, port: int, *, step: int = 1) -> WorkerStatus:
    """The first reading of at least `step`; AssertionError when the worker ends before."""
    while worker.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
                status = WorkerStatus.model_validate_json(answer.read())
        except OSError:
            time.sleep(0.02)
            continue
        if status.progress.step >= step:
            return status
        time.sleep(0.02)
    raise AssertionError(worker.end())
