"""Words and numbers for people: durations, sizes, and text of others made harmless."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def plain(text: object) -> str:
    """Text without control characters, so that no file name or log can steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def one_line(text: object) -> str:
    """`plain`, on one line."""
    return " ".join(plain(text).split())


def words(camel: str) -> str:
    """`TrainingTextEncoder` as `Training text encoder`."""
    spaced = _CAMEL.sub(" ", plain(camel))
    return spaced[:1] + spaced[1:].lower()


def duration(seconds: float) -> str:
    """`3d4h`, `3h12m`, `3m12s` or `12s`."""
    whole = int(seconds)
    for large, small, names in ((86_400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{names[0]}{whole % large // small}{names[1]}"
    return f"{whole}s"


def size(count: float) -> str:
    """Bytes as `12.3 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
