"""The last line of every benchmark; it must not know what was measured."""

from __future__ import annotations

import json


def report(*, bench: str, value: float, unit: str, against: str, goal: str, ok: bool) -> int:
    """Print the result as one JSON object; the exit status that says whether the goal was met."""
    line = {
        "bench": bench,
        "value": round(value, 3),
        "unit": unit,
        "against": against,
        "goal": goal,
        "ok": ok,
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0 if ok else 1
