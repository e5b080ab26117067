"""Workers that take keys from a queue and reconcile them; they know no kind and no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kubebooth_operator.doors import Key
from kubebooth_operator.errors import ApiError, Unavailable
from kubebooth_operator.logs import fields
from kubebooth_operator.metrics import Metrics, stopwatch
from kubebooth_operator.queue import WorkQueue
from kubebooth_operator.reconcile import Outcome, PlanFault

logger = logging.getLogger(__name__)

Reconcile = Callable[[Key], Awaitable[Outcome]]


async def work(
    queue: WorkQueue[Key], reconcile: Reconcile, metrics: Metrics, *, stopping: asyncio.Event
) -> None:
    """Reconcile one key after the other until `stopping`, finishing the last one."""
    while not stopping.is_set():
        key = await _next(queue, stopping)
        if key is None:
            return
        try:
            await _one(key, queue, reconcile, metrics)
        finally:
            queue.done(key)


def schedule(queue: WorkQueue[Key], key: Key, outcome: Outcome) -> float | None:
    """When to look at a key again after an outcome, in seconds; None when only news wake it."""
    if outcome.result == "conflict":
        return queue.retry(key)
    if outcome.requeue_after_s == 0:
        return queue.again(key)
    queue.forget(key)
    if outcome.requeue_after_s is not None:
        queue.add_after(key, outcome.requeue_after_s)
    return outcome.requeue_after_s


async def _next(queue: WorkQueue[Key], stopping: asyncio.Event) -> Key | None:
    key = queue.take()
    if key is not None:
        # Give the streams their turn even when keys never run out.
        await asyncio.sleep(0)
        return key
    getting = asyncio.ensure_future(queue.get())
    ending = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({getting, ending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()
        if not getting.done():
            getting.cancel()
    return getting.result() if getting.done() and not getting.cancelled() else None


async def _one(key: Key, queue: WorkQueue[Key], reconcile: Reconcile, metrics: Metrics) -> None:
    seconds = stopwatch()
    try:
        outcome = await reconcile(key)
    except ApiError as error:
        delay_s = error.delay_s if isinstance(error, Unavailable) else None
        again_s = queue.retry(key, delay_s=delay_s)
        _tell(key, "error", str(error), seconds(), metrics, again_s=again_s)
        return
    except PlanFault as fault:
        again_s = queue.retry(key)
        logger.error("a plan failed: a fault of ours", exc_info=fault, extra=fields(key=_text(key)))
        _tell(key, "fault", str(fault), seconds(), metrics, again_s=again_s)
        return
    scheduled_s = schedule(queue, key, outcome)
    if "status" in outcome.writes:
        metrics.status_writes.labels(key.plural).inc()
    _tell(
        key,
        outcome.result,
        outcome.decision,
        seconds(),
        metrics,
        again_s=scheduled_s,
        outcome=outcome,
    )


def _tell(
    key: Key,
    result: str,
    decision: str,
    seconds: float,
    metrics: Metrics,
    *,
    again_s: float | None,
    outcome: Outcome | None = None,
) -> None:
    metrics.reconciles.labels(key.plural, result).inc()
    metrics.reconcile_seconds.labels(key.plural).observe(seconds)
    # A look that changed nothing is no decision: thousands of them come with every restart.
    level = logging.DEBUG if result in {"unchanged", "gone"} else logging.INFO
    if result in {"error", "fault"}:
        level = logging.WARNING
    if not logger.isEnabledFor(level):
        return
    logger.log(
        level,
        "reconciled",
        extra=fields(
            key=_text(key),
            result=result,
            decision=decision,
            generation=outcome.generation if outcome else None,
            writes=list(outcome.writes) if outcome and outcome.writes else None,
            duration_s=round(seconds, 4),
            requeue_after_s=None if again_s is None else round(again_s, 3),
        ),
    )


def _text(key: Key) -> str:
    return f"{key.plural}/{key.namespace}/{key.name}"
