"""The doors to the outside: HTTP client, progress poller, own server, login, logs, command line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from kubebooth_operator import errors, logs
from kubebooth_operator.__main__ import main
from kubebooth_operator.doors import Key
from kubebooth_operator.http import HttpClient
from kubebooth_operator.login import Login, LoginError, from_account, from_kubeconfig, login
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.progress import Poller
from kubebooth_operator.resources import CONFIG_MAPS, JOBS
from kubebooth_operator.server import serve

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = Key("dreamboothsessions", "default", "one")


async def serving(handler: Handler) -> tuple[web.AppRunner, int]:
    """A real HTTP server with one handler for everything."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    return runner, port


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
        await client.delete(JOBS, "ns", "a", uid="u")

    asked(answer, story)
    apply, merge, delete = seen
    assert apply[:2] == ("PATCH", "/api/v1/namespaces/ns/configmaps/a")
    assert apply[2] == {"fieldManager": "kubebooth", "force": "true"}
    assert apply[3] == "application/apply-patch+yaml"
    assert merge[:2] == ("PATCH", "/apis/batch/v1/namespaces/ns/jobs/a/status")
    assert merge[3] == "application/merge-patch+json"
    assert delete[0] == "DELETE"
    assert delete[4]["preconditions"] == {"uid": "u"}
    assert delete[4]["propagationPolicy"] == "Background"


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


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://h:1/", **cluster}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


def test_a_kubeconfig_gives_address_and_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    found = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert found.server == "https://h:1"
    assert found.bearer() == "secret"
    assert from_kubeconfig(kubeconfig(tmp_path, {"token": "t"})).bearer() == "t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not YAML"),
        ("current-context: a", "contexts"),
        ("[]", "missing"),
    ],
)
def test_a_bad_kubeconfig_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(LoginError, match=message) as caught:
        from_kubeconfig(path)
    assert str(path) in str(caught.value)


def test_credential_plugins_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(LoginError, match="service account's token"):
        from_kubeconfig(kubeconfig(tmp_path, {"exec": {"command": "aws"}}))


def test_a_pod_logs_in_with_its_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t1")
    (tmp_path / "ca.crt").write_text("pem")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = from_account(environment, tmp_path)
    assert found.server == "https://[fd00::1]:443"
    (tmp_path / "token").write_text("t2")
    assert found.bearer() == "t2"
    with pytest.raises(LoginError, match="token"):
        login(environment, account=tmp_path / "none")


@pytest.fixture
def kept_logging() -> Any:
    """Puts the handlers of the root logger back."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.usefixtures("kept_logging")
def test_logs_are_one_json_object_per_line_also_for_libraries() -> None:
    stream = io.StringIO()
    logs.configure(form="json", level="info", stream=stream)
    logging.getLogger("kopf.x").warning("hello\n%s", "world")
    logging.getLogger("a").info("told", extra=logs.fields(key="k", none=None, number=1))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("warning", "hello\nworld")
    assert (second["key"], second["number"]) == ("k", 1)
    assert "none" not in second


@pytest.mark.usefixtures("kept_logging")
def test_text_logs_keep_a_record_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure(form="text", level="debug", stream=stream)
    logging.getLogger("a").info("two\nlines", extra=logs.fields(key="k"))
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('INFO    two\\nlines key="k"')


def test_help_and_settings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "KUBECONFIG" in capsys.readouterr().out


@pytest.mark.usefixtures("kept_logging")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KUBEBOOTH_PORT", "many"),
        ("KUBEBOOTH_RESYNC_SECONDS", "-1"),
        ("KUBEBOOTH_LOG_FORMAT", "xml"),
        ("KUBEBOOTH_LOG_LEVEL", "loud"),
        ("KUBEBOOTH_LEADER_ELECT", "perhaps"),
    ],
)
def test_a_wrong_setting_ends_with_its_name(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert main([]) == 2
    assert variable in capsys.readouterr().err


@pytest.mark.usefixtures("kept_logging")
def test_without_credentials_the_operator_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([]) == 2
    assert "KUBECONFIG" in capsys.readouterr().err
