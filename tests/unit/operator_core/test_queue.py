"""The work queue loses no change, works on a key once at a time, and waits after failures."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.queue import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, WorkQueue

KEYS = st.sampled_from("abc")


class Histories(RuleBasedStateMachine):
    """Random adds, takes and ends, beside a model that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue: WorkQueue[str] = WorkQueue(clock=lambda: self.now, jitter=lambda: 0.5)
        self.owed: set[str] = set()
        """Keys with a change that no worker has begun with yet."""
        self.later: dict[str, float] = {}
        self.busy: set[str] = set()

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)
        self.later.pop(key, None)

    @rule(key=KEYS, delay_s=st.floats(0.1, 10))
    def add_after(self, key: str, delay_s: float) -> None:
        self.queue.add_after(key, delay_s)
        if key not in self.owed:
            self.later[key] = min(self.later.get(key, float("inf")), self.now + delay_s)

    @rule()
    def take(self) -> None:
        key = self.queue.take()
        self._come_due()
        if key is None:
            assert self.owed <= self.busy
            return
        assert key not in self.busy
        assert key in self.owed
        self.owed.discard(key)
        self.busy.add(key)

    @rule(key=KEYS)
    def done(self, key: str) -> None:
        if key in self.busy:
            self.queue.done(key)
            self.busy.discard(key)

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_waits_twice(self) -> None:
        assert len(self.queue) <= 3

    def teardown(self) -> None:
        for key in tuple(self.busy):
            self.queue.done(key)
        self.now += 100
        self._come_due()
        worked = set()
        while (key := self.queue.take()) is not None:
            worked.add(key)
            self.queue.done(key)
        assert worked == self.owed

    def _come_due(self) -> None:
        for key, due in tuple(self.later.items()):
            if due <= self.now:
                del self.later[key]
                self.owed.add(key)


Histories.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_a_key_added_many_times_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(100):
        queue.add("a")
    assert queue.take() == "a"
    assert queue.take() is None


def test_a_key_added_while_busy_is_worked_on_once_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"
    queue.done("a")
    assert queue.take() is None


def test_failures_in_a_row_wait_longer_up_to_a_bound_and_success_forgets_them() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=lambda: 0.0, jitter=lambda: 1.0)
    waits = [queue.retry("a") for _ in range(20)]
    assert waits[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert waits[-1] == LONGEST_BACKOFF_S
    queue.forget("a")
    assert queue.retry("a") == FIRST_BACKOFF_S
    assert queue.retry("a", delay_s=7.0) == 7.0


def test_whoever_wants_to_go_again_and_again_is_slowed_down() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=lambda: 0.0, jitter=lambda: 1.0)
    waits = [queue.again("a") for _ in range(5)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_workers_that_wait_share_all_keys_and_none_is_done_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    at_once: Counter[int] = Counter()
    worked: Counter[int] = Counter()

    async def worker() -> None:
        while True:
            key = await queue.get()
            at_once[key] += 1
            assert at_once[key] == 1
            await asyncio.sleep(0)
            at_once[key] -= 1
            worked[key] += 1
            queue.done(key)
            if len(worked) == 100:
                complete.set()

    complete = asyncio.Event()

    async def story() -> None:
        workers = [asyncio.create_task(worker()) for _ in range(4)]
        await asyncio.sleep(0)
        for key in range(50):
            queue.add(key)
            queue.add_after(key + 50, 0.01)
        async with asyncio.timeout(20):
            await complete.wait()
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(story())
    assert set(worked) == set(range(100))


def test_the_metrics_have_the_names_of_client_go() -> None:
    metrics = Metrics()
    now = [0.0]
    queue: WorkQueue[str] = WorkQueue(metrics=metrics.queue("sessions"), clock=lambda: now[0])
    metrics.watch_busy({"sessions": queue.busy_s})
    queue.add("a")
    queue.add("b")
    now[0] = 2.0
    queue.take()
    now[0] = 5.0
    queue.retry("c")
    text = metrics.text().decode()
    assert 'workqueue_depth{name="sessions"} 1.0' in text
    assert 'workqueue_adds_total{name="sessions"} 2.0' in text
    assert 'workqueue_retries_total{name="sessions"} 1.0' in text
    assert 'workqueue_queue_duration_seconds_sum{name="sessions"} 2.0' in text
    assert 'workqueue_unfinished_work_seconds{name="sessions"} 3.0' in text
    assert 'workqueue_longest_running_processor_seconds{name="sessions"} 3.0' in text
    queue.done("a")
    assert 'workqueue_work_duration_seconds_sum{name="sessions"} 3.0' in metrics.text().decode()
