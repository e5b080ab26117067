"""A proxy in front of an S3 server that lies, stalls and breaks off when told to."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = (
    "flip the reply",
    "flip the request",
    "truncate",
    "stall",
    "trickle",
    "reset",
    "503",
    "lose the answer",
    "talk html",
)


@dataclass(frozen=True)
class Exchange:
    """One request as the proxy saw it."""

    method: str
    path: str
    size: int


@dataclass
class Lie:
    """A fault, whom it meets and how often."""

    fault: str
    when: Callable[[Exchange], bool]
    left: int


@dataclass
class Liar:
    """The proxy. It remembers each request; without a lie it passes everything on as it is."""

    target: str
    seen: list[Exchange] = field(default_factory=list)
    lies: list[Lie] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"liar": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.closing = threading.Event()

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def lie(self, fault: str, *, method: str = "", part: str = "", times: int = 1) -> None:
        """Meet the next `times` requests of a method whose path holds a part with a fault."""
        assert fault in FAULTS
        self.lies.append(
            Lie(fault, lambda e: e.method.startswith(method) and part in e.path, times)
        )

    def note(self, exchange: Exchange) -> str | None:
        """Remember a request; the fault it shall meet, if any."""
        with self._lock:
            self.seen.append(exchange)
            for lie in self.lies:
                if lie.left > 0 and lie.when(exchange):
                    lie.left -= 1
                    return lie.fault
        return None

    def count(self, *, method: str, part: str = "") -> int:
        """Requests of a method whose path holds a part."""
        return sum(e.method == method and part in e.path for e in self.seen)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


class _Handler(BaseHTTPRequestHandler):
    liar: Liar
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; one that breaks off is no news."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.liar.note(Exchange(self.command, self.path, len(body)))
        if fault in {"stall", "reset", "503", "talk html"}:
            self._refuse(fault)
            return
        status, headers, data = self._ask(_flipped(body) if fault == "flip the request" else body)
        if fault == "lose the answer":
            self.close_connection = True
            return
        self._answer(status, headers, data, fault)

    def _refuse(self, fault: str) -> None:
        self.close_connection = True
        if fault == "stall":
            self.liar.closing.wait(20)
        if fault == "503":
            self._plain(503, b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>")
        if fault == "talk html":
            self._plain(200, b"<html><body>please sign in</body></html>")

    def _plain(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.liar.target, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            reply = upstream.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            upstream.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str | None
    ) -> None:
        self.send_response_only(status)
        told = {name.lower() for name, _value in headers}
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        if "content-length" not in told:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "truncate":
            self.close_connection = True
            data = data[: len(data) // 2]
        if fault == "trickle":
            for index in range(len(data)):
                self.wfile.write(data[index : index + 1])
                time.sleep(0.02)
            return
        self.wfile.write(_flipped(data) if fault == "flip the reply" else data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815
