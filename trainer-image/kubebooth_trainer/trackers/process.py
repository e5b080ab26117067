"""A tracker's process as training sees it: readings go in, nothing ever comes back or blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from kubebooth_trainer.text import clipped
from kubebooth_trainer.trackers.lines import LINE, Opening, Picture, Scalars

_LOG = logging.getLogger(__name__)
MOST_WAITING = 2000
"""Readings that wait for a slow tracker; what comes after them is dropped."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
              "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy",
              "https_proxy", "no_proxy", "WANDB_MODE", "PYTHONPATH")  # fmt: skip
_USERINFO = re.compile(r"//[^/@\s]*@")


class TrackerProcess:
    """Starts at once; `close` waits a little while for what is still to be sent."""

    def __init__(
        self, kind: str, opening: Opening, *, secrets: Mapping[str, str], folder: Path
    ) -> None:
        self.kind, self.note = kind, ""
        """`note` says in words what went wrong, or nothing."""
        self._secrets, self._folder, self._dropped = secrets, folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._told: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        with (folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kubebooth_trainer.trackers", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=folder,
                env=self._environment(),
                start_new_session=True,
            )
        self.tell(opening)
        self._writer = threading.Thread(target=self._write, name=f"tracker {kind}", daemon=True)
        self._writer.start()

    def tell(self, line: Opening | Scalars | Picture) -> None:
        """Pass a line on, or drop it when the tracker is too slow or gone."""
        try:
            self._told.put_nowait(LINE.dump_json(line, by_alias=True).decode())
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                _LOG.warning("tracker is too slow, readings are dropped", extra=self._fields())

    def close(self, *, wait_s: float) -> None:
        """End the process, after at most so many seconds."""
        end = time.monotonic() + wait_s
        with contextlib.suppress(queue.Full):
            self._told.put(None, timeout=wait_s)
        self._writer.join(timeout=max(0.0, end - time.monotonic()))
        try:
            self._process.wait(timeout=max(0.05, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn("it did not take the last readings in time")
        self._writer.join(timeout=wait_s)
        if self._process.returncode and not self.note:
            self._warn(self._last_words())
        if self._dropped and not self.note:
            self.note = f"{self.kind} was too slow: {self._dropped} readings were dropped"

    def _write(self) -> None:
        """The writer's thread: waits where training must not."""
        pipe = self._process.stdin
        if pipe is None:
            return
        try:
            while (line := self._told.get()) is not None:
                pipe.write(line.encode() + b"\n")
                pipe.flush()
            pipe.close()
        except OSError:
            self._process.wait()
            self._warn(self._last_words())
            while self._told.get() is not None:
                pass

    def _warn(self, why: str) -> None:
        if self.note:
            return
        self.note = f"{self.kind} was not told everything: {why}"
        _LOG.warning("tracker failed, training goes on", extra={**self._fields(), "why": why})

    def _fields(self) -> dict[str, str]:
        return {"tracker": self.kind}

    def _last_words(self) -> str:
        """The last line on stderr, without secrets."""
        try:
            lines = (self._folder / "stderr").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        told = lines[-1] if lines else f"it ended with {self._process.returncode}"
        for secret in self._secrets.values():
            told = told.replace(secret, "***")
        return clipped(_USERINFO.sub("//***@", told), 200)

    def _environment(self) -> dict[str, str]:
        """What the process needs, and of all secrets its own token only."""
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {**kept, "HOME": str(self._folder), **self._secrets}
