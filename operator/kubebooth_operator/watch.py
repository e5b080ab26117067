"""Streams of the API server through kopf: the only importer of kopf.

Handlers only hand events on. kopf's own ways to handle changes lose updates when a spec changes
while a handler runs, and write to every object; none of them is used.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kubebooth_operator.login import Login, LoginError
from kubebooth_operator.resources import Resource

if "kubernetes" not in sys.modules:
    # kopf imports the whole client library, 60 MB of memory, only to recognise its classes.
    sys.modules["kubernetes"] = None  # type: ignore[assignment]
    import kopf

    del sys.modules["kubernetes"]
else:
    import kopf

from kopf._cogs.clients import errors, watching

logger = logging.getLogger(__name__)

Sink = Callable[[Resource, str | None, Mapping[str, Any]], None]
"""Takes the resource, the type (None while listing) and the object of each event."""


class _Anew(errors.APITooManyRequestsError):
    """An error inside a stream other than 410. kopf would end the whole operator for it; of this
    class it is what makes kopf list and watch anew."""

    def __init__(self, text: str) -> None:
        super().__init__(text, status=429, headers={})
        logger.warning("a stream is begun anew: %s", text[:300])


# The one private name that is touched: there is no setting for it.
watching.WatchingError = _Anew  # type: ignore[misc, assignment]


class _Forever(Iterable[float]):
    """Delays between attempts: a stream never gives up, and never asks in a hurry."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0, 4.0)
        while True:
            yield 8.0


class _NoDiffs(kopf.DiffBaseStorage):
    """Compares nothing: kopf would copy every object for a comparison that nobody asks for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Keeps nothing on objects."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


async def stream(
    resources: Iterable[Resource],
    sink: Sink,
    *,
    login: Callable[[], Login],
    namespaces: Sequence[str],
    started: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    """Stream events into `sink` until `stop`. Sets `started` when kopf has set itself up."""
    registry = kopf.OperatorRegistry()
    _log_in(registry, login)
    settings = _settings()
    for resource in resources:
        _watch(registry, settings, resource, sink)
    await kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
        ready_flag=started,
        stop_flag=stop,
    )


def _log_in(registry: kopf.OperatorRegistry, login: Callable[[], Login]) -> None:
    @kopf.on.login(registry=registry, retries=None, backoff=2.0)
    async def connect(**_: Any) -> kopf.ConnectionInfo:
        try:
            found = login()
            token = found.bearer()
        except LoginError as error:
            raise kopf.TemporaryError(str(error), delay=5.0) from error
        return kopf.ConnectionInfo(
            server=found.server,
            ca_data=found.authority_pem,
            insecure=found.insecure,
            token=token,
            certificate_data=found.certificate_pem,
            private_key_data=found.key_pem,
        )


def _watch(
    registry: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    resource: Resource,
    sink: Sink,
) -> None:
    if resource.label_selector:
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = (
            resource.label_selector
        )

    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        sink(resource, event["type"], event["object"])


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.reconnect_backoff = 0.2
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _Forever()
    settings.queueing.idle_timeout = 0.2
    settings.process.ultimate_exiting_timeout = None
    # kopf takes its own finalizer off every object: it must not believe that ours is its own.
    settings.persistence.finalizer = "kubebooth.io/never-used"
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    return settings
