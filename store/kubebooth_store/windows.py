"""A bounded number of tasks at once with their results in order; it knows no store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def in_order(task: Callable[[A], R], items: Iterable[A], *, parallel: int) -> Iterator[R]:
    """Results of a task for each item, in order, with at most `parallel` begun and not yet taken.

    The first error ends it: tasks not begun are dropped, those under way are waited for.
    """
    if parallel <= 1:
        yield from map(task, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="kubebooth-store")
    try:
        for item in items:
            if len(waiting) >= parallel:
                yield waiting.popleft().result()
            waiting.append(pool.submit(task, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
