"""A server that behaves like a hub of models: listing, resolving, ranges, redirects to another
host; and breaks, lies and stalls when told to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO, REVISION = "painter/shapes", "a" * 40


@dataclass
class Hub:
    """Two listening ports: the hub itself and the content network it sends large files to."""

    files: dict[str, bytes]
    repo: str = REPO
    revision: str = REVISION
    token: str | None = None
    """Needed to read, when set."""
    faults: list[str] = field(default_factory=list)
    """Met by the next requests for content, in order, one each: `break`, `stall`, `503`, `flip`,
    `lengthen`, `html`, `no ranges`, `shorten`."""
    page: int = 1000
    seen: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, range and authorization of each request for content."""
    asked: list[str] = field(default_factory=list)
    promises: dict[str, str] = field(default_factory=dict)
    """Digests to promise in place of the true ones."""

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.content = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )
        self.closing = threading.Event()
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers
        ]
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.daemon_threads = True
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def rows(self) -> list[dict[str, object]]:
        """The listing, folders among it."""
        rows: list[dict[str, object]] = [
            {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            for folder in sorted({n.split("/")[0] for n in self.files if "/" in n})
        ]
        for name, data in sorted(self.files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
            if name.endswith(".safetensors"):
                sha256 = self.promises.get(name, hashlib.sha256(data).hexdigest())
                row["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            rows.append(row)
        return rows


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        hub.asked.append(self.path)
        path = unquote(parts.path)
        if path.startswith("/content/"):
            self._content(path.removeprefix("/content/"))
            return
        if hub.token is not None and self.headers["authorization"] != f"Bearer {hub.token}":
            self._answer(401, b"{}", {"x-error-code": "GatedRepo"})
            return
        if path == f"/api/models/{hub.repo}/tree/{hub.revision}":
            self._listing(parts.query)
            return
        name = path.removeprefix(f"/{hub.repo}/resolve/{hub.revision}/")
        if name == path or name not in hub.files:
            self._answer(404, b"{}", {"x-error-code": "EntryNotFound"})
            return
        if name.endswith(".safetensors"):
            where = {"location": f"{hub.content}/content/{name}?X-Signature=secret"}
            self._answer(302, b"", where)
            return
        self._content(name)

    def _listing(self, query: str) -> None:
        start = int(query.partition("cursor=")[2] or 0)
        rows = self.hub.rows()
        more = start + self.hub.page < len(rows)
        link = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true"
        headers = {"link": f'<{link}&cursor={start + self.hub.page}>; rel="next"'} if more else {}
        self._answer(200, json.dumps(rows[start : start + self.hub.page]).encode(), headers)

    def _content(self, name: str) -> None:
        hub, asked = self.hub, self.headers["range"]
        hub.seen.append((name, asked, self.headers["authorization"]))
        fault = hub.faults.pop(0) if hub.faults else ""
        data = hub.files[name]
        if fault == "503":
            self._answer(503, b"later", {})
            return
        if fault == "html":
            data = b"<html>sign in</html>"
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == "lengthen":
            data += b"more"
        if fault == "shorten":
            data = data[:-1]
        start = 0
        if asked and fault != "no ranges":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        headers = {"content-length": str(len(data) - start), "etag": '"one"'}
        if asked and fault != "no ranges":
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if "content-range" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        body = data[start:]
        if fault in ("break", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.hub.closing.wait(5)
            self.close_connection = True
            return
        for piece in range(0, len(body), 1 << 16):
            self.wfile.write(body[piece : piece + (1 << 16)])
            if fault == "slow":
                time.sleep(0.05)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""
