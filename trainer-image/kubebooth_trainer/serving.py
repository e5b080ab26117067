"""Serves a worker's progress and metrics over HTTP beside the work, and can never harm it.

    GET /progress   `WorkerStatus` as JSON
    GET /metrics    the same for Prometheus
    GET /healthz    `ok`

It only reads the reporter. Few requests at once, short time-outs, no state.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.metrics import as_prometheus
from kubebooth_trainer.reporter import Reporter

_LOG = logging.getLogger(__name__)
_MOST_AT_ONCE = 16
_TIMEOUT_S = 5.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A lingering reader must not delay the end of the worker.
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], reporter: Reporter) -> None:
        self.reporter = reporter
        self._slots = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # No thread to be had: this reader goes away empty.
            self._slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("reader went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "kubebooth-trainer"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        reporter = self.server.reporter
        if path == "/progress":
            body = reporter.status.model_dump_json(by_alias=True, exclude_none=True).encode()
            self._answer(200, body, "application/json")
        elif path == "/metrics":
            body, content_type = as_prometheus(
                reporter.status, accelerator_bytes=reporter.accelerator_bytes
            )
            self._answer(200, body, content_type)
        elif path == "/healthz":
            self._answer(200, b"ok\n", "text/plain; charset=utf-8")
        else:
            told = b"ask for /progress, /metrics or /healthz\n"
            self._answer(404, told, "text/plain; charset=utf-8")

    do_HEAD = do_GET  # noqa: N815 (name of the parent's)

    def _answer(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (name of the parent's)
        _LOG.debug("request", extra={"request": format % args})


def address_of(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `[::1]:0` → host and port. Raises `ConfigurationError`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"--listen {text!r}: write ADDRESS:PORT or none")
    return host.strip("[]"), int(port)


@contextmanager
def serving(reporter: Reporter, listen: tuple[str, int] | None) -> Iterator[int | None]:
    """Serve while the block runs; gives the port, or None where nothing is served.

    A taken port or a wrong address is logged and the work goes on unseen.
    """
    if listen is None:
        yield None
        return
    try:
        server = _server(listen, reporter)
    except OSError as error:
        _LOG.warning(
            "progress is not served", extra={"address": f"{listen[0]}:{listen[1]}", "why": error}
        )
        yield None
        return
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="progress", daemon=True
    )
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=_TIMEOUT_S)


def _server(listen: tuple[str, int], reporter: Reporter) -> _Server:
    if ":" not in listen[0]:
        return _Server(listen, reporter)
    from socket import AF_INET6

    class _Server6(_Server):
        address_family = AF_INET6
        socket: socket

    return _Server6(listen, reporter)
