"""Keeps a conversion through a store small: freed buffers go back to the system at once.

It must not know what is converted.
"""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
_LARGE_BYTES = 256 << 10


def give_back_freed_buffers() -> None:
    """Have the C library map large buffers one by one.

    Left alone, glibc raises that bound with every buffer freed and keeps an arena a thread, so that
    buffers of a few MiB add up to a hundred. Other C libraries do not know the call and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_ARENA_MAX, 2)
