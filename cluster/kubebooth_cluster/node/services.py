"""Services on their ClusterIP: listens there and passes connections to ready pods.

A Service listens only while it has a ready pod, so that a client of an empty one is
refused, as it would be elsewhere. It must not know who runs the pods.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from kubebooth_cluster.node.hosts import selected
from kubebooth_cluster.node.settings import Object

log = logging.getLogger("kubebooth.node")

_CHUNK_BYTES = 1 << 18
_SETTLE_S = 0.05
_RETRY_S = 2.0
_CONNECT_S = 5

Address = tuple[str, int]


@dataclass
class _Front:
    """One listening address and the pods behind it."""

    server: asyncio.Server
    backends: list[Address]


def routes(
    services: Iterable[Object], pods: Iterable[Object], *, api: Address
) -> dict[Address, list[Address]]:
    """For every TCP port of a Service with a ClusterIP: where its connections go."""
    everyone = list(pods)
    found: dict[Address, list[Address]] = {}
    for service in services:
        spec, metadata = service["spec"], service["metadata"]
        ip = spec.get("clusterIP")
        if not ip or ip == "None":
            continue
        if (metadata["namespace"], metadata["name"]) == ("default", "kubernetes"):
            found[(ip, 443)] = [api]
            continue
        behind = selected(service, everyone)
        for port in spec.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                ends = [(pod["status"]["podIP"], _target_port(port, pod)) for pod in behind]
                found[(ip, int(port["port"]))] = [end for end in ends if end[1]]
    return found


def _target_port(port: Object, pod: Object) -> int:
    """The number of a Service's target port in a pod; 0 when the pod names no such port."""
    target = port.get("targetPort") or port["port"]
    if str(target).isdigit():
        return int(target)
    for container in (*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())):
        for own in container.get("ports") or ():
            if own.get("name") == target:
                return int(own["containerPort"])
    return 0


class ServiceProxy:
    """Keeps listeners and routes as the API server's Services and pods ask for."""

    def __init__(self, wanted: Callable[[], dict[Address, list[Address]]]) -> None:
        """`wanted` gives the routes of this moment."""
        self._wanted = wanted
        self._fronts: dict[Address, _Front] = {}
        self._poked = asyncio.Event()
        self._told: set[Address] = set()

    def poke(self) -> None:
        """Something changed that may change a route."""
        self._poked.set()

    async def run(self) -> None:
        """Follow the routes for ever."""
        try:
            while True:
                settled = await self._settle()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if settled else _RETRY_S):
                        await self._poked.wait()
                self._poked.clear()
                await asyncio.sleep(_SETTLE_S)
        finally:
            for front in self._fronts.values():
                front.server.close()

    async def _settle(self) -> bool:
        """Make the listeners what they should be; False when some could not be opened."""
        wanted = {address: ends for address, ends in self._wanted().items() if ends}
        for address in self._fronts.keys() - wanted.keys():
            self._fronts.pop(address).server.close()
        failed = 0
        for address, ends in wanted.items():
            if address in self._fronts:
                self._fronts[address].backends = ends
            elif not await self._open(address, ends):
                failed += 1
        return failed == 0

    async def _open(self, address: Address, ends: list[Address]) -> bool:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(address, reader, writer)

        try:
            server = await asyncio.start_server(serve, *address, limit=_CHUNK_BYTES)
        except OSError as error:
            # Another node's agent may listen already, or the port may need root.
            if address not in self._told:
                log.warning("service address=%s:%d not opened: %s", *address, error)
                self._told.add(address)
            return False
        self._told.discard(address)
        self._fronts[address] = _Front(server, ends)
        return True

    async def _serve(
        self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        front = self._fronts.get(address)
        ends = list(front.backends) if front else []
        random.shuffle(ends)
        far = await _connect(ends)
        if far is None:
            writer.transport.abort()
            return
        await asyncio.gather(_copy(reader, far[1]), _copy(far[0], writer))
        far[1].close()
        writer.close()


async def _connect(
    ends: Iterable[Address],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """A connection to the first pod that takes one."""
    for end in ends:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                return await asyncio.open_connection(*end, limit=_CHUNK_BYTES)
    return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass one direction on to its end; a broken side breaks the other too."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()
