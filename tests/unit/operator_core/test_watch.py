"""Streams of a server that answers with errors: they are begun anew, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from kubebooth_operator.login import Login
from kubebooth_operator.resources import Resource, custom
from kubebooth_operator.watch import stream

KIND = custom("dreamboothsessions", "DreamboothSession")
GROUP = "kubebooth.io"


class Moody:
    """An API server whose first watch ends in an error of its own making."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.watches = 0
        self.app = web.Application()
        self.app.router.add_get("/apis/kubebooth.io/v1alpha1/dreamboothsessions", self.objects)
        self.app.router.add_get("/{rest:.*}", self.discover)

    async def discover(self, request: web.Request) -> web.Response:
        """What the server serves."""
        version = {"groupVersion": f"{GROUP}/v1alpha1", "version": "v1alpha1"}
        group = {"name": GROUP, "versions": [version], "preferredVersion": version}
        resource = {
            "name": KIND.plural,
            "singularName": "dreamboothsession",
            "kind": KIND.kind,
            "namespaced": True,
            "verbs": ["get", "list", "watch", "patch"],
        }
        answers: dict[str, Any] = {
            "/apis": {"groups": [group]},
            "/apis/kubebooth.io/v1alpha1": {"resources": [resource]},
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [{**resource, "name": "namespaces", "kind": "Namespace"}]},
        }
        return web.json_response(answers.get(request.path, {"resources": []}))

    async def objects(self, request: web.Request) -> web.StreamResponse:
        """The list, or the stream."""
        if request.query.get("watch") != "true":
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        self.watches += 1
        answer = web.StreamResponse()
        await answer.prepare(request)
        event = {"type": "ERROR", "object": {"code": self.code, "message": "etcd is moody"}}
        if self.watches > 1:
            metadata = {"name": "a", "namespace": "b", "uid": "c", "resourceVersion": "2"}
            event = {"type": "ADDED", "object": {"metadata": metadata}}
        await answer.write(json.dumps(event).encode() + b"\n")
        if self.watches > 1:
            await asyncio.sleep(30)
        return answer


def test_an_error_inside_a_stream_begins_it_anew_and_ends_nothing() -> None:
    server = Moody(500)

    async def story() -> tuple[list[str], bool]:
        runner = web.AppRunner(server.app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        seen: list[str] = []
        came, stop, started = asyncio.Event(), asyncio.Event(), asyncio.Event()

        def sink(resource: Resource, type_: str | None, body: Mapping[str, Any]) -> None:
            seen.append(body["metadata"]["name"])
            came.set()

        streaming = asyncio.create_task(
            stream(
                [KIND],
                sink,
                login=lambda: Login(server=f"http://127.0.0.1:{port}"),
                namespaces=(),
                started=started,
                stop=stop,
            )
        )
        arriving = asyncio.create_task(came.wait())
        await asyncio.wait({streaming, arriving}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        alive = not streaming.done()
        stop.set()
        await asyncio.wait({streaming}, timeout=10)
        await runner.cleanup()
        return seen, alive

    seen, alive = asyncio.run(story())
    assert alive
    assert seen == ["a"]
    assert server.watches >= 2
