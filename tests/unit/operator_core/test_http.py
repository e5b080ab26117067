"""The HTTP client says what it means and maps whatever comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubebooth_operator import errors
from kubebooth_operator.http import HttpClient
from kubebooth_operator.login import Login
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.resources import CONFIG_MAPS, JOBS

from tests.unit.operator_core.answering import Handler, serving


def asked(handler: Handler, story: Callable[[HttpClient], Awaitable[Any]], **login: Any) -> Any:
    """The result of a story with a client of a server."""

    async def run() -> Any:
        runner, port = await serving(handler)
        server = f"http://127.0.0.1:{port}"
        client = HttpClient(lambda: Login(server=server, **login), Metrics())
        try:
            return await story(client)
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (404, errors.NotFound),
        (409, errors.Conflict),
        (422, errors.Invalid),
        (403, errors.Forbidden),
        (410, errors.Gone),
        (429, errors.Unavailable),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
def test_every_status_becomes_an_error_of_ours_with_the_servers_words(
    code: int, error: type[errors.ApiError]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {"Retry-After": "7"} if code == 429 else {}
        return web.json_response({"message": "because"}, status=code, headers=headers)

    with pytest.raises(error, match="because") as caught:
        asked(answer, lambda client: client.get(JOBS, "default", "a"))
    assert caught.value.code == code
    if isinstance(caught.value, errors.Unavailable):
        assert caught.value.delay_s == (7.0 if code == 429 else None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{"])
def test_an_answer_that_is_no_object_is_no_answer(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    with pytest.raises(errors.Unavailable):
        asked(answer, lambda client: client.get(JOBS, "default", "a"))


def test_a_broken_connection_is_no_answer() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with pytest.raises(errors.Unavailable):
        asked(answer, lambda client: client.get(JOBS, "default", "a"))


def test_requests_say_what_they_mean() -> None:
    seen: list[tuple[str, str, dict[str, str], str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        kind = request.headers["Content-Type"]
        seen.append((request.method, request.path, dict(request.query), kind, body))
        return web.json_response({"kind": "x"})

    async def story(client: HttpClient) -> None:
        await client.apply(CONFIG_MAPS, "ns", "a", {"data": {}}, force=True)
        await client.merge(JOBS, "ns", "a", {"status": {}}, subresource="status")
        await client.delete(JOBS, "ns", "a", uid="u", foreground=True)

    asked(answer, story)
    apply, merge, delete = seen
    assert apply[:2] == ("PATCH", "/api/v1/namespaces/ns/configmaps/a")
    assert apply[2] == {"fieldManager": "kubebooth", "force": "true"}
    assert apply[3] == "application/apply-patch+yaml"
    assert merge[:2] == ("PATCH", "/apis/batch/v1/namespaces/ns/jobs/a/status")
    assert merge[3] == "application/merge-patch+json"
    assert delete[0] == "DELETE"
    assert delete[4]["preconditions"] == {"uid": "u"}
    assert delete[4]["propagationPolicy"] == "Foreground"


def test_a_token_that_was_replaced_in_its_file_is_used_after_a_401(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    valid = ["old"]

    async def answer(request: web.Request) -> web.Response:
        known = request.headers.get("Authorization") == f"Bearer {valid[0]}"
        return web.json_response({"kind": "x"}, status=200 if known else 401)

    async def story(client: HttpClient) -> Any:
        await client.get(JOBS, "default", "a")
        valid[0] = "new"
        token.write_text("new\n")
        return await client.get(JOBS, "default", "a")

    assert asked(answer, story, token_file=token) == {"kind": "x"}


def test_a_token_that_is_not_known_is_a_lack_of_rights(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"message": "Unauthorized"}, status=401)

    with pytest.raises(errors.Forbidden, match="Unauthorized"):
        asked(answer, lambda client: client.get(JOBS, "default", "a"), token="t")
