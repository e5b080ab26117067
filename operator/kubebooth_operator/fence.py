"""Lets writes through only while this replica leads, so that a stopped leader cannot wake up and
write over its successor's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kubebooth_operator.client import Client, Json, Page
from kubebooth_operator.errors import Unavailable
from kubebooth_operator.resources import Resource


class Fence:
    """A `Client` whose writes raise `Unavailable` unless `leads` says yes at that moment."""

    def __init__(self, client: Client, leads: Callable[[], bool]) -> None:
        self._client = client
        self._leads = leads

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """See `Client`."""
        return await self._client.get(resource, namespace, name)

    async def list_metadata(
        self, resource: Resource, namespace: str | None, *, limit: int, token: str = ""
    ) -> Page:
        """See `Client`."""
        return await self._client.list_metadata(resource, namespace, limit=limit, token=token)

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        """See `Client`."""
        self._check()
        return await self._client.create(resource, namespace, body)

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        force: bool,
    ) -> Json:
        """See `Client`."""
        self._check()
        return await self._client.apply(resource, namespace, name, body, force=force)

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> Json:
        """See `Client`."""
        self._check()
        return await self._client.merge(resource, namespace, name, patch, subresource=subresource)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: Sequence[Mapping[str, Any]]
    ) -> Json:
        """See `Client`."""
        self._check()
        return await self._client.json_patch(resource, namespace, name, patch)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None, foreground: bool
    ) -> Json:
        """See `Client`."""
        self._check()
        return await self._client.delete(resource, namespace, name, uid=uid, foreground=foreground)

    def _check(self) -> None:
        if not self._leads():
            raise Unavailable("this replica does not lead")
