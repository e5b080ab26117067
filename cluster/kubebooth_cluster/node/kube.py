"""The agent's requests to the API server and its watches; it must not know what pods are.

Every verb may raise ApiError (refused) or Unreachable (nobody there, or overloaded).
"""

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aiohttp

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.kubeconfig import Credentials
from kubebooth_cluster.node.settings import Object

log = logging.getLogger("kubebooth.node")

_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_WATCH_S = 300
_T = TypeVar("_T")

Seen = Callable[[str, Object], None]


class Unreachable(ClusterError):
    """The API server is not there, or cannot answer now: try again."""


class Kube:
    """JSON requests over one pooled session; use it as an async context."""

    def __init__(self, credentials: Credentials) -> None:
        self.server = credentials.server
        self._tls = ssl.create_default_context(cadata=credentials.authority_pem)
        self._headers = {"Authorization": f"Bearer {credentials.token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Kube":
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=50),
            timeout=aiohttp.ClientTimeout(total=30),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use `async with Kube(...)`")
        return self._session

    async def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = _JSON
    ) -> Any:
        """The decoded answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        try:
            async with self._open().request(
                method, self.server + path, data=data, headers=headers
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {error!r}") from error
        if answer.status >= 500 or answer.status == 429:
            raise Unreachable(f"{method} {path}: {answer.status} {text[:300]}")
        try:
            document = json.loads(text)
        except ValueError as error:
            # A server that is just starting answers unknown paths in plain text.
            raise Unreachable(f"{method} {path}: {answer.status} {text[:300]}") from error
        if answer.status >= 400:
            raise ApiError(answer.status, str(document.get("message", text[:300])))
        return document

    async def get(self, path: str) -> Any:
        """The object or list at `path`."""
        return await self.request("GET", path)

    async def find(self, path: str) -> Any:
        """The object at `path`, or None when there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def post(self, path: str, body: Object) -> Any:
        """Create `body`."""
        return await self.request("POST", path, body)

    async def put(self, path: str, body: Object) -> Any:
        """Replace the object at `path`."""
        return await self.request("PUT", path, body)

    async def merge(self, path: str, body: Object) -> Any:
        """Merge-patch the object at `path`."""
        return await self.request("PATCH", path, body, content_type=_MERGE)

    async def patch(self, path: str, body: Object) -> Any:
        """Strategic merge patch: lists of conditions are merged by type."""
        return await self.request("PATCH", path, body, content_type=_STRATEGIC)

    async def delete(self, path: str, body: Object | None = None) -> Any:
        """Delete the object at `path`, with DeleteOptions as `body`."""
        return await self.request("DELETE", path, body)

    async def follow(self, path: str, seen: Seen, *, synced: asyncio.Event | None = None) -> None:
        """List and watch `path` for ever, telling `seen("SET" or "GONE", object)`.

        What was missed while the server was away is found by comparing lists.
        """
        known: dict[str, Object] = {}
        failures = 0
        while True:
            try:
                version = await self._list(path, known, seen)
                if synced is not None:
                    synced.set()
                failures = 0
                while version:
                    version = await self._stream(path, version, known, seen)
            except (Unreachable, ApiError) as error:
                failures += 1
                log.info("watch path=%s retry=%d error=%s", path, failures, error)
                await asyncio.sleep(pause_s(failures))

    async def _list(self, path: str, known: dict[str, Object], seen: Seen) -> str:
        listing = await self.get(path)
        fresh = {str(item["metadata"]["uid"]): item for item in listing["items"]}
        for uid in known.keys() - fresh.keys():
            seen("GONE", known.pop(uid))
        for uid, item in fresh.items():
            known[uid] = item
            seen("SET", item)
        return str(listing["metadata"]["resourceVersion"])

    async def _stream(self, path: str, version: str, known: dict[str, Object], seen: Seen) -> str:
        """Follow one watch to its end; the version to go on from, or "" to list anew."""
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={_WATCH_S}"
        async for event in self._events(f"{path}?{query}&resourceVersion={version}"):
            item = event["object"]
            if event["type"] == "ERROR":
                return ""
            version = str(item["metadata"]["resourceVersion"])
            if event["type"] == "DELETED":
                known.pop(str(item["metadata"]["uid"]), None)
                seen("GONE", item)
            elif event["type"] != "BOOKMARK":
                known[str(item["metadata"]["uid"])] = item
                seen("SET", item)
        return version

    async def _events(self, path: str) -> AsyncIterator[Object]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_S + 30)
        rest = b""
        try:
            async with self._open().get(self.server + path, timeout=timeout) as answer:
                if answer.status != 200:
                    raise Unreachable(f"watch {path}: {answer.status}")
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"watch {path}: {error!r}") from error


def pause_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.1 doubling to 5, with jitter."""
    return float(min(0.1 * 2.0 ** min(failures, 10), 5.0) * random.uniform(0.7, 1.3))


async def until_answered(act: Callable[[], Awaitable[_T]], *, what: str) -> _T:
    """Repeat `act` until the API server answers it, yes or no. Raises ApiError on no."""
    failures = 0
    while True:
        try:
            return await act()
        except Unreachable as error:
            failures += 1
            log.info("retry what=%s failures=%d error=%s", what, failures, error)
            await asyncio.sleep(pause_s(failures))
