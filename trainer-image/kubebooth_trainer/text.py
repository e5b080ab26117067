"""Makes hostile text safe to print on one line of a terminal, a log or a status."""

from __future__ import annotations

import re

# Control characters, line separators, and marks that turn the direction of writing around.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def printable(text: str) -> str:
    """The text with every character that could harm a reader's screen replaced by `\\ufffd`."""
    return _UNPRINTABLE.sub("\ufffd", text.encode("utf-8", "replace").decode())


def clipped(text: str, limit_characters: int) -> str:
    """Printable text on one line of at most so many characters; a cut shows as `…`."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= limit_characters else f"{line[: limit_characters - 1]}…"
