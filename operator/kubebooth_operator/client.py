"""What the operator asks of an API server; implemented over HTTP and, in tests, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kubebooth_operator.resources import Resource

Json = dict[str, Any]
Name = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Page:
    """Part of a list."""

    items: Mapping[Name, tuple[str, str]]
    """Namespace and name → uid and resourceVersion."""
    version: str
    """resourceVersion of the list."""
    token: str
    """Continue token; empty on the last page."""


class Client(Protocol):
    """Requests as coroutines. Every method raises `ApiError`."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """One object."""

    async def list_metadata(
        self, resource: Resource, namespace: str | None, *, limit: int, token: str = ""
    ) -> Page:
        """A page of names and versions; the label selector is applied."""

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        """Create an object. `Conflict` when the name is taken."""

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        force: bool,
    ) -> Json:
        """Server-side apply. `Conflict` when `metadata.uid` in `body` is not the object's, or
        another manager owns a field and `force` is off."""

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> Json:
        """JSON merge patch. `Conflict` when `metadata.resourceVersion` in it is not current."""

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: Sequence[Mapping[str, Any]]
    ) -> Json:
        """JSON patch. `Invalid` when a test in it fails."""

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None, foreground: bool
    ) -> Json:
        """Delete in the back- or foreground. `Conflict` when the object has another uid."""
