"""Asks running workers on their own port how far they are; what they say is hostile input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp
from kubebooth_api.runs import WorkerStatus

from kubebooth_operator.doors import Key
from kubebooth_operator.reading import worker_status

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 2.0
_MOST_BYTES = 64 * 1024
_MOST_AT_ONCE = 16

Find = Callable[[Key], tuple[str, str] | None]
"""UID and `host:port` of the running worker of a key, if there is one."""


class Poller:
    """Remembers what the workers said last."""

    def __init__(self, find: Find, changed: Callable[[Key], None], *, interval_s: float) -> None:
        """`changed` is told the key whose worker says something new."""
        self._find = find
        self._changed = changed
        self._interval_s = interval_s
        self._wanted: set[Key] = set()
        self._said: dict[Key, tuple[str, WorkerStatus]] = {}

    def want(self, key: Key, *, wanted: bool) -> None:
        """Whether the worker of a key should be asked from now on."""
        if wanted:
            self._wanted.add(key)
            return
        self._wanted.discard(key)
        self._said.pop(key, None)

    def said(self, key: Key) -> WorkerStatus | None:
        """What the worker of a key said last, as long as it still runs."""
        said = self._said.get(key)
        worker = self._find(key) if said is not None else None
        return said[1] if said is not None and worker is not None and worker[0] == said[0] else None

    async def run(self) -> None:
        """Ask for ever, once per interval."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=_MOST_AT_ONCE, force_close=True)
        # A proxy of the environment is for the internet, not for pods.
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False
        ) as session:
            while True:
                await asyncio.sleep(self._interval_s)
                await self.round(session)

    async def round(self, session: aiohttp.ClientSession) -> None:
        """Ask every wanted worker once, some at a time."""
        gate = asyncio.Semaphore(_MOST_AT_ONCE)

        async def ask(key: Key) -> None:
            async with gate:
                await self._ask(session, key)

        await asyncio.gather(*(ask(key) for key in tuple(self._wanted)))

    async def _ask(self, session: aiohttp.ClientSession, key: Key) -> None:
        worker = self._find(key)
        if worker is None:
            return
        uid, address = worker
        text = await _fetch(session, f"http://{address}/progress")
        status = None if text is None else worker_status(text)
        if status is None or key not in self._wanted:
            return
        if self._said.get(key) != (uid, status):
            self._said[key] = (uid, status)
            self._changed(key)


async def _fetch(session: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            text = await response.content.read(_MOST_BYTES + 1)
            while text and not response.content.at_eof() and len(text) <= _MOST_BYTES:
                text += await response.content.read(_MOST_BYTES + 1 - len(text))
            return text if len(text) <= _MOST_BYTES else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        logger.debug("no progress from %s: %r", url, error)
        return None
