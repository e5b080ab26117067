"""Turns SIGTERM and Ctrl-C into a polite request to stop; the second Ctrl-C is obeyed at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kubebooth_trainer.reporter import Reporter

_INTERRUPTED = 130


@contextmanager
def obeying(reporter: Reporter) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT set `reporter.stop`."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        # Kubernetes may repeat SIGTERM; only a person's impatience ends without saving.
        if number == signal.SIGINT and reporter.stop.is_set():
            os._exit(_INTERRUPTED)
        reporter.stop.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
