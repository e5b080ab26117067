"""Back-off and deadlines without any server."""

from __future__ import annotations

import time

import pytest
from kubebooth_store import Corrupt, Unavailable
from kubebooth_store.patience import Attempt, Patience, Transient, persist

QUICK = Patience(timeout_s=0.3, first_pause_s=0.001, longest_pause_s=0.002)


def test_a_fault_that_passes_is_not_seen() -> None:
    def third_time(attempt: Attempt) -> int:
        if attempt.number < 3:
            raise Transient("busy")
        return attempt.number

    assert persist(third_time, patience=QUICK, what="PUT a") == 3


def test_a_fault_that_stays_names_the_key_the_tries_and_the_cure() -> None:
    def never(_attempt: Attempt) -> int:
        raise Transient("no connection could be made")

    with pytest.raises(Unavailable, match=r"PUT a: no connection .* \d+ tries .* check") as caught:
        persist(never, patience=QUICK, what="PUT a")
    assert caught.value.retryable


def test_bytes_that_keep_arriving_damaged_are_corrupt_before_the_time_is_over() -> None:
    tries: list[int] = []

    def damaged(attempt: Attempt) -> int:
        tries.append(attempt.number)
        raise Transient("the bytes were damaged", corrupt=True)

    with pytest.raises(Corrupt, match="GET a"):
        persist(damaged, patience=Patience(60, first_pause_s=0.001), what="GET a")
    assert tries == [1, 2, 3, 4]


def test_a_trickle_is_cut_off_at_the_deadline() -> None:
    def trickle(attempt: Attempt) -> int:
        while True:
            attempt.check()

    with pytest.raises(Unavailable, match="too slow"):
        persist(trickle, patience=Patience(0.05), what="GET a")


def test_a_first_try_that_used_all_the_time_is_followed_by_one_more() -> None:
    def slow_once(attempt: Attempt) -> int:
        if attempt.number == 1:
            time.sleep(0.02)
            raise Transient("cut off late")
        return attempt.number

    assert persist(slow_once, patience=Patience(0.01), what="PUT a") == 2


def test_a_try_that_moves_bytes_is_given_more_time_than_one_that_does_not() -> None:
    began = time.monotonic() - 10
    attempt = Attempt(1, began, timeout_s=5)
    with pytest.raises(Transient):
        attempt.check(1000)
    attempt.check(1 << 20)
