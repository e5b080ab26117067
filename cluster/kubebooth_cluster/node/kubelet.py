"""The node's HTTPS endpoint, so that `kubectl logs` works; it serves nothing but logs.

Lines carry no time of their own here, so `--since` shows everything.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from kubebooth_cluster.node.records import Record, read_record
from kubebooth_cluster.node.register import HOST_IP
from kubebooth_cluster.ports import free_ports

_CHUNK_BYTES = 1 << 16
_POLL_S = 0.1

FindPod = Callable[[str, str], Path | None]


class LogServer:
    """Serves the logs of this node's containers to the API server, and to nobody else."""

    def __init__(self, find_pod: FindPod, *, pki: Path, stem: str) -> None:
        """`find_pod` gives the folder of a pod by namespace and name."""
        self._find_pod = find_pod
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / f"{stem}.crt", pki / f"{stem}.key")
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._runner: web.AppRunner | None = None
        self.port = free_ports(1)[0]

    async def start(self) -> None:
        """Listen on `port`."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST_IP, self.port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where, query = request.match_info, request.query
        pod = self._find_pod(where["namespace"], where["pod"])
        folder = None if pod is None else pod / "containers" / where["container"]
        record = None if folder is None else read_record(folder / "record.json")
        if folder is None or record is None:
            return web.Response(status=404, text=f"container {where['container']} has no log yet")
        number = record.number - (1 if query.get("previous") == "true" else 0)
        log = folder / f"{number}.log"
        if not log.exists():
            text = f"previous terminated container {where['container']} not found"
            return web.Response(status=400, text=text)
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        limit = int(query["limitBytes"]) if query.get("limitBytes") else None
        offset = _tail_offset(log, int(query["tailLines"])) if query.get("tailLines") else 0
        follow = query.get("follow") == "true"
        await _send(answer, log, offset, limit, lambda: follow and _goes_on(folder, record))
        return answer


def _goes_on(folder: Path, record: Record) -> bool:
    """Whether the attempt that is followed may still write."""
    newest = read_record(folder / "record.json")
    return newest is not None and newest.number == record.number and newest.exit is None


async def _send(
    answer: web.StreamResponse,
    log: Path,
    offset: int,
    limit: int | None,
    goes_on: Callable[[], bool],
) -> None:
    with log.open("rb") as stream:
        stream.seek(offset)
        while True:
            # Asked before reading: what was written before the end is then still sent.
            more = goes_on()
            while chunk := stream.read(_CHUNK_BYTES if limit is None else min(limit, _CHUNK_BYTES)):
                await answer.write(chunk)
                limit = None if limit is None else limit - len(chunk)
            if not more or limit == 0:
                return
            await asyncio.sleep(_POLL_S)


def _tail_offset(log: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    size = log.stat().st_size
    if lines <= 0:
        return size
    with log.open("rb") as stream:
        position, found = size, b""
        while position > 0 and found.rstrip(b"\n").count(b"\n") < lines:
            step = min(_CHUNK_BYTES, position)
            position -= step
            stream.seek(position)
            found = stream.read(step) + found
    kept = found.splitlines(keepends=True)[-lines:]
    return size - sum(len(line) for line in kept)
