"""Leader election by a Lease, with client-go's rules and times; it knows nothing of the work.

The clocks of the replicas are never compared: a lease has ended when this replica saw no change
of it for its duration.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from kubebooth_operator.client import Client, Json
from kubebooth_operator.errors import ApiError, Conflict, NotFound
from kubebooth_operator.logs import fields
from kubebooth_operator.resources import LEASES

logger = logging.getLogger(__name__)

LEASE = "kubebooth-operator"


class LeaseLost(Exception):
    """The lease could not be renewed in time: somebody else may lead now."""


class Elector:
    """Takes and keeps one Lease."""

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        identity: str,
        duration_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._duration_s = duration_s
        self._clock = clock
        self.identity = identity
        self.renew_deadline_s = duration_s * 2 / 3
        self.retry_s = duration_s * 2 / 15
        self._lease: Json | None = None
        self._seen_at = float("-inf")
        self._renewed_at = float("-inf")
        self._leading = False

    def leads(self) -> bool:
        """Whether the lease is certainly ours at this moment."""
        return self._leading and self._clock() - self._renewed_at < self.renew_deadline_s

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while True:
            if await self._try():
                break
            jittered_s = self.retry_s * (0.8 + 0.4 * random.random())
            # Not a moment after the end of a dead leader's lease.
            await asyncio.sleep(min(jittered_s, max(self._ends_in_s(), 0.05)))
        logger.info("this replica leads", extra=fields(identity=self.identity))

    async def keep(self) -> None:
        """Renew until that fails for too long. Raises `LeaseLost`."""
        while True:
            await asyncio.sleep(self.retry_s)
            await self._try()
            if not self.leads():
                self._leading = False
                raise LeaseLost(f"the Lease was not renewed for {self.renew_deadline_s:g} s")

    async def release(self) -> None:
        """Let another replica lead at once; does nothing when this one does not lead."""
        if not self.leads() or self._lease is None:
            return
        self._leading = False
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
        try:
            await self._patch(self._lease, spec)
        except ApiError as error:
            logger.warning("the Lease was not released: %s", error)
            return
        logger.info("the Lease is released", extra=fields(identity=self.identity))

    async def _try(self) -> bool:
        """Take or renew the lease. Gives whether it is ours now."""
        began = self._clock()
        try:
            async with asyncio.timeout(self.renew_deadline_s / 2):
                return await self._take(began)
        except Conflict:
            # Somebody else was faster; the next look tells who.
            self._lease = None
        except (ApiError, TimeoutError) as error:
            logger.warning("the Lease cannot be reached: %s", error or "time-out")
        return False

    async def _take(self, began: float) -> bool:
        lease = self._lease
        if lease is None or not self.leads():
            lease = await self._claimable()
        if lease is None:
            return False
        spec = lease.get("spec") or {}
        claim: Json = {"renewTime": _micro_time()}
        if spec.get("holderIdentity") != self.identity or not self._leading:
            claim |= {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, round(self._duration_s)),
                "acquireTime": _micro_time(),
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1,
            }
        self._remember(await self._patch(lease, claim))
        # Counted from before the request: the server may have written as early as that.
        self._renewed_at, self._leading = began, True
        return True

    async def _claimable(self) -> Json | None:
        """The lease, if it is free, ended or ours; made if there is none."""
        try:
            lease = await self._client.get(LEASES, self._namespace, LEASE)
        except NotFound:
            body: Json = {"metadata": {"name": LEASE, "namespace": self._namespace}, "spec": {}}
            body |= {"apiVersion": LEASES.api_version, "kind": LEASES.kind}
            return await self._client.create(LEASES, self._namespace, body)
        version = lease["metadata"]["resourceVersion"]
        if self._lease is None or self._lease["metadata"]["resourceVersion"] != version:
            self._remember(lease)
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder in ("", self.identity) or self._ends_in_s() <= 0:
            return lease
        self._leading = False
        return None

    def _ends_in_s(self) -> float:
        """Seconds until the lease ends unless it is renewed, as far as this replica knows."""
        if self._lease is None:
            return self.retry_s
        spec = self._lease.get("spec") or {}
        lasts_s = float(spec.get("leaseDurationSeconds") or self._duration_s)
        return self._seen_at + lasts_s - self._clock()

    def _remember(self, lease: Json) -> None:
        self._lease, self._seen_at = lease, self._clock()

    async def _patch(self, lease: Json, spec: Json) -> Json:
        guard = {"resourceVersion": lease["metadata"]["resourceVersion"]}
        patch = {"metadata": guard, "spec": spec}
        return await self._client.merge(LEASES, self._namespace, LEASE, patch)


class Alone:
    """Stands in for an `Elector` where leader election is off: always leads."""

    identity = "alone"

    def leads(self) -> bool:
        """Always."""
        return True

    async def acquire(self) -> None:
        """At once."""

    async def keep(self) -> None:
        """For ever."""
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Nothing to release."""


def unique(identity: str, *, default: str) -> str:
    """An identity that no other process has. A pod's name is one: its containers never run
    twice at once, and a restarted one may lead again without waiting."""
    return f"{identity}-{uuid.uuid4().hex[:8]}" if identity == default else identity


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
