"""Full lists against the cache: finds what streams did not tell. It knows no stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kubebooth_operator.cache import Cache
from kubebooth_operator.client import Client, Name
from kubebooth_operator.cluster import Cluster
from kubebooth_operator.doors import Key
from kubebooth_operator.resources import Resource

PAGE = 500
_MANY = 100


async def list_versions(
    client: Client, resource: Resource, namespace: str | None
) -> tuple[dict[Name, tuple[str, str]], str]:
    """Uid and resourceVersion of every object, and the list's own version, page by page.

    Raises `ApiError`; `Gone` when the list took too long and must be started anew.
    """
    page = await client.list_metadata(resource, namespace, limit=PAGE)
    found = dict(page.items)
    while page.token:
        page = await client.list_metadata(resource, namespace, limit=PAGE, token=page.token)
        found.update(page.items)
    return found, page.version


Patience = Callable[[Callable[[], int]], Awaitable[None]]
"""Waits for the streams as long as the number it is given still falls."""


async def at_once(unseen: Callable[[], int]) -> None:
    """No patience."""


async def resync(
    client: Client,
    cluster: Cluster,
    cache: Cache,
    resource: Resource,
    namespace: str | None = None,
    *,
    patience: Patience = at_once,
) -> set[Key]:
    """Bring the cache up to date with a full list. Gives the keys for which that made a
    difference. Raises `ApiError`.

    What the streams will tell in a moment is not asked for: `patience` waits for them.
    """
    found, version = await list_versions(client, resource, namespace)
    missing = dict(found)

    def still_unseen() -> int:
        nonlocal missing
        lacking = len(found) - cache.count(resource)
        if lacking > _MANY:
            # While thousands are still on their way it is enough to count them.
            return lacking
        missing = {
            name: facts for name, facts in missing.items() if cache.is_unseen(resource, name, facts)
        }
        return len(missing)

    await patience(still_unseen)
    missed = cache.compare(resource, found, version=version, namespace=namespace)
    keys: set[Key] = set()
    for name in missed.ghosts:
        entry = cache.entry(resource, name)
        if entry is None:
            continue
        keys |= _concerned(cache, resource, entry.load())
        cache.drop(resource, name, uid=entry.uid, version=version)
    for name in missed.unseen:
        body = await cluster.refresh_object(resource, name)
        keys |= _concerned(cache, resource, body)
    return keys


def _concerned(cache: Cache, resource: Resource, body: dict[str, object] | None) -> set[Key]:
    return set() if body is None else set(cache.concerned(resource, body))
