"""The one error a person sees: what is wrong and, on a second line, the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CliError(Exception):
    """Ends a command with exit code 1. `message` says what is wrong, `cure` what to do."""

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure


def near(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """`did you mean a or b?`, or the empty text when nothing is alike."""
    found = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(found)}?" if found else ""
