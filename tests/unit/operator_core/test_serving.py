"""Workers are asked with distrust, and health and metrics are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web
from kubebooth_operator.doors import Key
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.progress import Poller
from kubebooth_operator.server import serve

from tests.unit.operator_core.answering import Handler, serving

KEY = Key("dreamboothsessions", "default", "one")
PROGRESS = {
    "progress": {
        "stage": "Denoiser",
        "step": 5,
        "totalSteps": 10,
        "percentage": 50,
        "updatedAt": "2026-01-01T00:00:00Z",
    }
}


def polled(handler: Handler, *, rounds: int = 1) -> tuple[Poller, list[Key]]:
    """A poller that has asked a worker."""
    told: list[Key] = []
    address: list[str] = []
    poller = Poller(lambda key: ("uid", address[0]), told.append, interval_s=1.0)

    async def run() -> None:
        runner, port = await serving(handler)
        address.append(f"127.0.0.1:{port}")
        poller.want(KEY, wanted=True)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            for _ in range(rounds):
                await poller.round(session)
        await runner.cleanup()

    asyncio.run(run())
    return poller, told


def test_what_a_worker_says_is_told_when_it_changes() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(PROGRESS)

    poller, told = polled(answer, rounds=3)
    assert told == [KEY]
    said = poller.said(KEY)
    assert said is not None
    assert said.progress.step == 5
    poller.want(KEY, wanted=False)
    assert poller.said(KEY) is None


@pytest.mark.parametrize(
    "answer",
    [
        web.Response,
        lambda: web.Response(status=500),
        lambda: web.Response(text="[" * 10_000),
        lambda: web.Response(body=b" " * 200_000 + json.dumps(PROGRESS).encode()),
        lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        lambda: web.json_response({**PROGRESS, "more": 1}),
        lambda: web.json_response({"progress": {**PROGRESS["progress"], "step": -1}}),
    ],
)
def test_a_worker_that_talks_nonsense_is_not_heard(answer: Callable[[], web.Response]) -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer()

    poller, told = polled(handler)
    assert told == []
    assert poller.said(KEY) is None


def test_health_and_metrics_are_served() -> None:
    faults: dict[str, str | None] = {"health": None, "ready": "the cache is not complete yet"}
    metrics = Metrics()
    metrics.leader.set(1)

    async def run() -> list[tuple[int, str]]:
        runner = await serve(
            listen="127.0.0.1",
            port=0,
            healthy=lambda: faults["health"],
            ready=lambda: faults["ready"],
            metrics=metrics.text,
        )
        (site,) = runner.sites
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        answers = []
        async with aiohttp.ClientSession() as session:
            for path in ("healthz", "readyz", "metrics", "else"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                    answers.append((response.status, await response.text()))
        await runner.cleanup()
        return answers

    health, ready, measured, other = asyncio.run(run())
    assert health == (200, "ok")
    assert ready == (503, "the cache is not complete yet")
    assert "kubebooth_leader 1.0" in measured[1]
    assert other[0] == 404
