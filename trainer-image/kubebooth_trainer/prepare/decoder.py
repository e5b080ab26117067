"""Decodes hostile pictures in a bounded child process that is replaced when it dies.

The parent never decodes a byte of what users upload. The child has no credentials in its
environment and limits its own memory, CPU time and file size. It must not know stores.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kubebooth_trainer.errors import InternalFault
from kubebooth_trainer.prepare.framing import CENTRE, Framing
from kubebooth_trainer.prepare.protocol import CPU_LIMIT_S, MEMORY_MIB, READY, WALL_LIMIT_S
from kubebooth_trainer.prepare.shapes import Shape

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_REPLY_LIMIT_BYTES = 65_536
_START_LIMIT_S = 120.0
_END_LIMIT_S = 0.5
_EXPORT = "export it again as JPEG or PNG"


@dataclass(frozen=True)
class Decoded:
    """What the child made of one file."""

    pixels: str
    """SHA-256 of the training picture's RGB pixels, 64 hex digits."""
    width: int
    """Width of the file's picture in pixels."""
    height: int
    """Height of the file's picture in pixels."""
    original: tuple[int, int]
    """(height, width) of the upright original in pixels."""
    crop: tuple[int, int]
    """(top, left) of the cut after resizing, in pixels."""
    target: Shape
    """Shape of the training picture."""
    enlarged: bool
    """Whether the original has fewer pixels than the training picture."""


@dataclass(frozen=True)
class Verdict:
    """Why the child did not give a picture."""

    reason: str


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    questions: IO[bytes]
    answers: IO[bytes]


class Decoder:
    """One child for all pictures; use it as a context manager."""

    def __init__(
        self,
        *,
        scratch: Path,
        framing: Framing = CENTRE,
        memory_mib: int = MEMORY_MIB,
        wall_limit_s: float = WALL_LIMIT_S,
    ) -> None:
        self._framing = framing
        self._memory_mib = memory_mib
        self._wall_limit_s = wall_limit_s
        self._log = scratch / "decoder.log"
        self._child: _Child | None = None
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def decode(
        self, source: Path, target: Path, *, shapes: tuple[Shape, ...], min_edge: int
    ) -> Decoded | Verdict:
        """Render `source` to a PNG at `target`, of the shape that fits it best.

        Raises `InternalFault` when no child can be started at all.
        """
        child = self._ready()
        question = {
            "source": str(source),
            "target": str(target),
            "shapes": [[shape.height, shape.width] for shape in shapes],
            "minEdge": min_edge,
            "crop": self._framing.crop,
            "focus": self._framing.focus,
        }
        try:
            child.questions.write(json.dumps(question).encode() + b"\n")
            child.questions.flush()
        except OSError:
            return self._dead()
        try:
            line = self._line(child, limit_s=self._wall_limit_s)
        except TimeoutError:
            self._end()
            return Verdict(f"takes more than {self._wall_limit_s:g} s to decode; {_EXPORT}")
        return self._dead() if line is None else self._answer(line)

    def _answer(self, line: bytes) -> Decoded | Verdict:
        try:
            answer: dict[str, Any] = json.loads(line)
            if "refused" in answer:
                if answer.get("spent"):
                    self._end()
                return Verdict(str(answer["refused"])[:480])
            return Decoded(
                pixels=str(answer["pixels"]),
                width=int(answer["width"]),
                height=int(answer["height"]),
                original=_pair(answer["original"]),
                crop=_pair(answer["crop"]),
                target=Shape(*_pair(answer["target"])),
                enlarged=bool(answer["enlarged"]),
            )
        except (ValueError, KeyError, TypeError):
            self._end()
            return Verdict(f"confuses the decoder; {_EXPORT}")

    def _ready(self) -> _Child:
        if self._child is not None and self._child.process.poll() is None:
            return self._child
        self._end()
        self._child = child = _start(
            self._log, memory_mib=self._memory_mib, looks=self._framing.crop == "Smart"
        )
        try:
            line = self._line(child, limit_s=_START_LIMIT_S)
        except TimeoutError:
            line = None
        if line is None or line.strip() != READY:
            self._end()
            said = self._log.read_text(errors="replace")[-600:] if self._log.exists() else ""
            raise InternalFault(f"the picture decoder does not start: {said.strip()}")
        return child

    def _line(self, child: _Child, *, limit_s: float) -> bytes | None:
        """One line of the child, or None when it died. Raises `TimeoutError`."""
        deadline = time.monotonic() + limit_s
        pipe = child.answers
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                raise TimeoutError
            part = os.read(pipe.fileno(), 4096)
            self._pending += part
            if not part or len(self._pending) > _REPLY_LIMIT_BYTES:
                return None
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _dead(self) -> Verdict:
        code = self._end()
        if code == -signal.SIGXCPU:
            return Verdict(f"takes more than {CPU_LIMIT_S} s of CPU to decode; {_EXPORT}")
        if code == -signal.SIGKILL:
            # Nobody but the kernel kills it so, and that for want of memory.
            return Verdict("needs more memory than this worker has; scale it down")
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return Verdict(f"crashes the decoder ({how}); {_EXPORT}")

    def _end(self) -> int | None:
        child, self._child, self._pending = self._child, None, b""
        if child is None:
            return None
        # A dead child has closed its end; closing ours may then fail to flush.
        with contextlib.suppress(OSError):
            child.questions.close()
        child.answers.close()
        try:
            return child.process.wait(timeout=_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            return child.process.wait()


def _pair(told: Any) -> tuple[int, int]:
    first, second = told
    return int(first), int(second)


def _start(log: Path, *, memory_mib: int, looks: bool) -> _Child:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_ENVIRONMENT or name.startswith("PYTHON")
    }
    with log.open("wb") as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "kubebooth_trainer.prepare.child", str(memory_mib)),
                *(("looks",) if looks else ()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            # A terminal's Ctrl-C reaches the parent only, which then ends the child in order.
            start_new_session=True,
        )
    if process.stdin is None or process.stdout is None:
        raise InternalFault("the picture decoder has no pipes")
    return _Child(process, process.stdin, process.stdout)
