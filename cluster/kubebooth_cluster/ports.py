"""Free TCP ports of the loopback interface; it must not know who listens on them."""

import contextlib
import random
import socket

from kubebooth_cluster.errors import ClusterError

# Below the kernel's ephemeral range: a port that is kept over a restart must not
# be taken meanwhile as the source port of somebody's outgoing connection.
_LOWEST, _HIGHEST = 12_000, 32_000


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on right now.

    Raises ClusterError when a thousand tries do not find them.
    """
    numbers: list[int] = []
    with contextlib.ExitStack() as held:
        for number in random.sample(range(_LOWEST, _HIGHEST), 1000):
            if len(numbers) == count:
                return numbers
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", number))
                numbers.append(number)
    raise ClusterError(f"found no {count} free ports: what listens on {_LOWEST}-{_HIGHEST}?")
