"""The least that kopf can do with every session: one `on.event` handler that only counts.

Run as a process by `bench.operator`; prints what it took once it has seen so many objects.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from typing import Any

import kopf
from kubebooth_operator.login import login


def main(expected: int) -> None:
    """See `expected` objects, print CPU seconds and MB, end."""
    registry = kopf.OperatorRegistry()
    seen = 0
    done = asyncio.Event()

    @kopf.on.login(registry=registry)
    async def connect(**_: Any) -> kopf.ConnectionInfo:
        found = login()
        return kopf.ConnectionInfo(
            server=found.server,
            ca_data=found.authority_pem,
            token=found.bearer(),
            certificate_data=found.certificate_pem,
            private_key_data=found.key_pem,
        )

    @kopf.on.event("kubebooth.io", "v1alpha1", "dreamboothsessions", registry=registry)
    async def count(**_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen >= expected:
            done.set()

    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    operator = kopf.operator(
        registry=registry, settings=settings, standalone=True, clusterwide=True, stop_flag=done
    )
    asyncio.run(operator)
    used = resource.getrusage(resource.RUSAGE_SELF)
    taken = {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / 1e6}
    print(json.dumps(taken))


if __name__ == "__main__":
    main(int(sys.argv[1]))
