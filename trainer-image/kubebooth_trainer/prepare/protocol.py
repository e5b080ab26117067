"""What the decoder and its child agree on."""

from __future__ import annotations

MEMORY_MIB = 1792
"""Address space of the child, in MiB: enough for 100 million pixels in any format that is read
(the hungriest, WebP, takes 1630), and within a prepare pod of 2 GiB."""
FOCUS_MIB = 768
"""Address space, in MiB, that OpenCV and numpy take beside that in a child that looks for subjects;
most of it is never used."""
CPU_LIMIT_S = 30
"""CPU seconds one picture may take."""
WALL_LIMIT_S = 4.0 * CPU_LIMIT_S
"""Seconds one picture may take by the clock; generous, for a busy machine."""
READY = b'{"ready":true}'
"""First line of the child."""
