"""`/healthz`, `/readyz` and `/metrics` over HTTP; it knows nothing but the functions it asks."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

Check = Callable[[], str | None]
"""None when all is well, else what is wrong."""


async def serve(
    *, listen: str, port: int, healthy: Check, ready: Check, metrics: Callable[[], bytes]
) -> web.AppRunner:
    """Listen; `cleanup()` of what it gives ends that. Raises `OSError` when the port is taken."""

    async def health(request: web.Request) -> web.Response:
        return _verdict(healthy())

    async def readiness(request: web.Request) -> web.Response:
        return _verdict(ready())

    async def measurements(request: web.Request) -> web.Response:
        return web.Response(
            body=metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    application = web.Application(client_max_size=1024)
    application.router.add_get("/healthz", health)
    application.router.add_get("/readyz", readiness)
    application.router.add_get("/metrics", measurements)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, listen, port).start()
    return runner


def _verdict(fault: str | None) -> web.Response:
    return web.Response(text=fault or "ok", status=503 if fault else 200)
