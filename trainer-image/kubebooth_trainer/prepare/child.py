"""The decoder's child: one JSON question a line on stdin, one answer a line on stdout.

It bounds itself, renders, and dies with its parent. It must not import anything heavy.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from kubebooth_trainer.prepare.framing import Framing
from kubebooth_trainer.prepare.protocol import CPU_LIMIT_S, FOCUS_MIB, READY
from kubebooth_trainer.prepare.render import Refused, render
from kubebooth_trainer.prepare.shapes import Shape

_FILE_LIMIT_BYTES = 256 * 1024 * 1024


def main(memory_mib: int, *, looks: bool) -> None:
    """Answer questions until stdin ends; `looks` says that subjects will be looked for."""
    if looks:
        # Before the limit: the libraries take address space that pictures shall not pay for.
        import kubebooth_trainer.prepare.focus  # noqa: F401

        memory_mib += FOCUS_MIB
    # Whatever a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _limit(resource.RLIMIT_AS, memory_mib * 1024 * 1024)
    _limit(resource.RLIMIT_FSIZE, _FILE_LIMIT_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    answers.write(READY + b"\n")
    for line in sys.stdin.buffer:
        _limit_cpu()
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        rendered = render(
            Path(question["source"]),
            shapes=tuple(Shape(height, width) for height, width in question["shapes"]),
            min_edge=question["minEdge"],
            framing=Framing(question["crop"], question["focus"]),
        )
    except Refused as refused:
        return {"refused": str(refused)}
    except MemoryError:
        # Fragments of the failed attempt may stay: `spent` asks for a fresh child.
        return {
            "refused": "needs too much memory to decode; scale it down or export it as JPEG",
            "spent": True,
        }
    # No metadata and fixed settings: equal pixels give equal bytes.
    rendered.image.save(question["target"], format="PNG", compress_level=6)
    return {
        "pixels": hashlib.sha256(rendered.image.tobytes()).hexdigest(),
        "width": rendered.width,
        "height": rendered.height,
        "original": rendered.original,
        "crop": rendered.cut.crop,
        "target": [rendered.cut.shape.height, rendered.cut.shape.width],
        "enlarged": rendered.cut.enlarges,
    }


def _limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + CPU_LIMIT_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (bounded, bounded))
    except (ValueError, OSError):
        # Some systems know the limit but refuse it; the parent's clock still holds.
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), looks=sys.argv[2:] == ["looks"])
