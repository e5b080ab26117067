"""The API server over HTTP: the only place that knows aiohttp's errors and status codes.

Every request has a time-out; nothing is retried here but a token that expired, because the work
queue retries whole reconciles.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from kubebooth_operator.client import Json, Page
from kubebooth_operator.errors import ApiError, Unavailable, from_status
from kubebooth_operator.login import Login, LoginError
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.resources import FIELD_MANAGER, Resource
from kubebooth_operator.scan import page_of

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
_TOKEN_FRESH_S = 10.0
_MOST_CONNECTIONS = 32
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    sent: str
    accept: str


class HttpClient:
    """`Client` over HTTP. Open it inside the event loop, close it there."""

    def __init__(self, login: Callable[[], Login], metrics: Metrics) -> None:
        """`login` is asked at first and whenever the server no longer knows us."""
        self._ask_login = login
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self._login: Login | None = None
        self._token: str | None = None
        self._token_read = float("-inf")

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        self._session = None

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """One object."""
        return await self._json("get", resource, resource.path(namespace, name))

    async def list_metadata(
        self, resource: Resource, namespace: str | None, *, limit: int, token: str = ""
    ) -> Page:
        """A page of names and versions."""
        query = {"limit": str(limit)}
        if resource.label_selector:
            query["labelSelector"] = resource.label_selector
        if token:
            query["continue"] = token
        path = resource.path(namespace)
        text = await self._text("list", resource, path, query=query, accept=_METADATA_ONLY)
        try:
            return page_of(text)
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"{path}: the answer is no list: {error}") from error

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        """Create an object."""
        path = resource.path(namespace)
        return await self._json(
            "create", resource, path, query={"fieldManager": FIELD_MANAGER}, body=body
        )

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        force: bool,
    ) -> Json:
        """Server-side apply."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        path = resource.path(namespace, name)
        return await self._json("apply", resource, path, query=query, body=body, sent=_APPLY)

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> Json:
        """JSON merge patch."""
        path = resource.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        verb = f"patch_{subresource}" if subresource else "patch"
        return await self._json(verb, resource, path, query=query, body=patch, sent=_MERGE)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: Sequence[Mapping[str, Any]]
    ) -> Json:
        """JSON patch."""
        path = resource.path(namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._json("patch", resource, path, query=query, body=patch, sent=_JSON_PATCH)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None, foreground: bool
    ) -> Json:
        """Delete; in the foreground the object keeps its name until its children are gone."""
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        options["propagationPolicy"] = "Foreground" if foreground else "Background"
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self._json("delete", resource, resource.path(namespace, name), body=options)

    async def served(self, group_version: str) -> set[str]:
        """Plurals that the server serves under `group/version`; empty when it does not know it."""
        path = f"/apis/{group_version}"
        code, answer, _ = await self._send(_Request("GET", path, {}, None, _JSON, _JSON))
        if code == 404:
            return set()
        if code >= 400:
            raise _error(path, code, answer, None)
        return {item["name"] for item in _parsed(path, answer).get("resources") or ()}

    async def _json(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        sent: str = _JSON,
    ) -> Json:
        return _parsed(
            path, await self._text(verb, resource, path, query=query, body=body, sent=sent)
        )

    async def _text(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        sent: str = _JSON,
        accept: str = _JSON,
    ) -> bytes:
        code = 0
        try:
            method = _METHODS.get(verb, "PATCH")
            request = _Request(method, path, query or {}, body, sent, accept)
            code, answer, retry_after = await self._send(request)
            if code == 401 and self._login_again():
                code, answer, retry_after = await self._send(request)
            if code >= 400:
                raise _error(path, code, answer, retry_after)
            return answer
        finally:
            self._metrics.requests.labels(verb, resource.plural, str(code)).inc()

    async def _send(self, request: _Request) -> tuple[int, bytes, str | None]:
        """Status, body and Retry-After of the answer. Raises `Unavailable` without one."""
        body = request.body
        try:
            session, server = self._open()
            async with session.request(
                request.method,
                server + request.path,
                params=request.query,
                data=None if body is None else json.dumps(body, separators=(",", ":")).encode(),
                headers=self._headers(request),
                allow_redirects=False,
            ) as response:
                return response.status, await response.read(), response.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{request.method} {request.path}: {error!r}") from error
        except LoginError as error:
            raise Unavailable(str(error)) from error

    def _open(self) -> tuple[aiohttp.ClientSession, str]:
        if self._login is None:
            self._login = self._ask_login()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=_MOST_CONNECTIONS, ssl=self._login.tls(), keepalive_timeout=60
                ),
                timeout=aiohttp.ClientTimeout(
                    total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S
                ),
                headers={"User-Agent": "kubebooth-operator"},
            )
        return self._session, self._login.server

    def _headers(self, request: _Request) -> dict[str, str]:
        headers = {"Accept": request.accept, "Content-Type": request.sent}
        now = time.monotonic()
        if self._login is not None and now - self._token_read > _TOKEN_FRESH_S:
            self._token, self._token_read = self._login.bearer(), now
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _login_again(self) -> bool:
        """Read the credentials anew after a 401. Gives whether they are others than before."""
        before = self._token
        self._token_read = float("-inf")
        try:
            self._login = self._ask_login()
            after = self._login.bearer()
        except LoginError as error:
            logger.warning("credentials cannot be read: %s", error)
            return False
        return after != before


_METHODS = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE"}


def _parsed(path: str, answer: bytes) -> Json:
    try:
        parsed = json.loads(answer)
    except ValueError as error:
        raise Unavailable(f"{path}: the answer is no JSON") from error
    if not isinstance(parsed, dict):
        raise Unavailable(f"{path}: the answer is no object")
    return parsed


def _error(path: str, code: int, answer: bytes, retry_after: str | None) -> ApiError:
    try:
        message = str(json.loads(answer)["message"])
    except (ValueError, LookupError, TypeError):
        message = answer[:300].decode(errors="replace")
    delay_s = float(retry_after) if retry_after and retry_after.isdigit() else None
    return from_status(code, f"{path}: {code}: {message}", delay_s=delay_s)
