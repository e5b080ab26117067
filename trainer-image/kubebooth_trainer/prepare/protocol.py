"""What the decoder and its child agree on."""

from __future__ import annotations

MEMORY_MIB = 2048
"""Address space of the child, in MiB: enough for 100 million pixels in any colour mode."""
CPU_LIMIT_S = 30
"""CPU seconds one picture may take."""
READY = b'{"ready":true}'
"""First line of the child."""


def wall_limit_s() -> float:
    """Seconds one picture may take by the clock; generous, for a busy machine."""
    return 4.0 * CPU_LIMIT_S
