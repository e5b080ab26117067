"""Failed tries: what is final, what is tried again and when, and what a person is told."""

from __future__ import annotations

import pytest
from kubebooth_api.exitcodes import ExitCode

from tests.unit.session.booth import Booth
from tests.unit.session.world import KILLED


def _exits(*codes: int) -> Booth:
    """A session whose train pods end with these codes in turn, the last one for ever."""
    booth = Booth()
    left = list(codes)

    def next_exit(stage: str) -> int:
        if stage != "train":
            return 0
        return left.pop(0) if len(left) > 1 else left[0]

    booth.world.next_exit = next_exit
    return booth


@pytest.mark.parametrize("code", [ExitCode.CONFIGURATION_ERROR, ExitCode.DATA_ERROR])
def test_a_fault_of_the_user_is_final(code: int) -> None:
    booth = _exits(code)
    booth.settle()
    assert booth.world.started == ["prepare", "train"]
    assert booth.holds("Failed")
    assert booth.holds("Stalled")
    assert not booth.holds("Ready")
    assert not booth.holds("Reconciling")
    assert booth.status["lastFailure"]["exitCode"] == code
    assert "what happened and the cure" in booth.condition("Failed")["message"]
    assert "kubectl kubebooth retry rex" in booth.condition("Failed")["message"]
    assert "nextRetryAt" not in booth.status


@pytest.mark.parametrize(
    "code",
    [ExitCode.OUT_OF_MEMORY, ExitCode.STORAGE_ERROR, ExitCode.INTERNAL_ERROR, KILLED],
)
def test_other_faults_are_tried_again(code: int) -> None:
    booth = _exits(code, 0)
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train", "train"]
    outcomes = [attempt["outcome"] for attempt in booth.status["attempts"]]
    assert outcomes == ["Succeeded", "Failed", "Succeeded"]
    assert booth.status["lastFailure"]["exitCode"] == code


def test_retries_wait_longer_each_time_and_then_end() -> None:
    booth = _exits(ExitCode.STORAGE_ERROR)
    booth.settle()
    assert booth.holds("Failed")
    assert booth.condition("Failed")["reason"] == "StorageUnavailable"
    assert "after 4 failed tries" in booth.condition("Failed")["message"]
    assert booth.world.started.count("train") == 4
    waited = (booth.simulator.now - booth.simulator.now.replace(hour=0, minute=0, second=0)).seconds
    assert 10 + 20 + 40 <= waited < 90


def test_a_session_that_waits_for_its_next_try_says_when() -> None:
    booth = _exits(ExitCode.STORAGE_ERROR)
    for _ in range(200):
        booth.world(booth.simulator.server)
        booth.simulator.deliver()
        booth.simulator.work()
        if booth.status.get("retries") == 1:
            break
    ready = booth.condition("Ready")
    assert ready["reason"] == "StorageUnavailable"
    assert "retry 1 of 3 at 00:00:10Z" in ready["message"]
    assert booth.holds("Reconciling")
    assert booth.status["phase"] == "Retrying"


def test_the_backoff_never_exceeds_ten_minutes() -> None:
    booth = _exits(ExitCode.STORAGE_ERROR)
    booth.edit(retry={"limit": 9, "backoffSeconds": 300})
    booth.simulator.settle(horizon_s=300 + 5 * 600 + 60)
    assert booth.status["retries"] == 7


def test_a_preempted_worker_goes_on_without_counting() -> None:
    booth = _exits(*[ExitCode.PREEMPTED] * 6, 0)
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["retries"] == 0
    outcomes = [attempt["outcome"] for attempt in booth.status["attempts"]]
    assert outcomes == ["Succeeded", *["Preempted"] * 6, "Succeeded"]


def test_attempts_are_bounded_and_keep_the_newest() -> None:
    booth = _exits(*[ExitCode.PREEMPTED] * 36, 0)
    exits = booth.world.next_exit

    def one_a_second(stage: str) -> int:
        booth.simulator.advance(1)
        return exits(stage)

    booth.world.next_exit = one_a_second
    booth.settle()
    attempts = booth.status["attempts"]
    assert len(attempts) == 32
    assert attempts[-1]["outcome"] == "Succeeded"
    assert attempts[-1]["number"] == 38


def test_a_worker_killed_at_its_memory_limit_names_the_cure() -> None:
    booth = _exits(KILLED)
    booth.edit(retry={"limit": 0})
    booth.settle()
    assert booth.condition("Failed")["reason"] == "OutOfMemory"
    assert "spec.runtime.resources.memory" in booth.condition("Failed")["message"]


def test_a_retry_asked_by_a_person_starts_a_new_series() -> None:
    booth = _exits(ExitCode.DATA_ERROR, 0)
    booth.settle()
    assert booth.holds("Failed")
    booth.retry("1")
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train", "train"]


def test_the_same_retry_is_not_granted_twice() -> None:
    booth = _exits(ExitCode.DATA_ERROR)
    booth.retry("1")
    booth.settle()
    booth.simulator.crash()
    booth.settle()
    assert booth.holds("Failed")
    assert booth.world.started == ["prepare", "train"]


def test_a_changed_spec_starts_a_new_series() -> None:
    booth = _exits(ExitCode.OUT_OF_MEMORY)
    booth.edit(retry={"limit": 0})
    booth.settle()
    assert booth.holds("Failed")
    booth.world.next_exit = lambda stage: 0
    booth.edit(runtime={"resources": {"memory": "32Gi"}})
    booth.settle()
    assert booth.holds("Complete")


def test_a_raised_limit_goes_on_with_the_series() -> None:
    booth = _exits(ExitCode.INTERNAL_ERROR, 0)
    booth.edit(retry={"limit": 0})
    booth.settle()
    assert booth.holds("Failed")
    booth.edit(retry={"limit": 1})
    booth.settle()
    assert booth.holds("Complete")


def test_a_failed_session_stays_failed_when_its_jobs_are_gone() -> None:
    booth = _exits(ExitCode.DATA_ERROR)
    booth.edit(ttlSecondsAfterFinished=60)
    booth.settle()
    assert booth.jobs() == []
    assert booth.holds("Failed")
    booth.simulator.crash()
    booth.settle()
    assert booth.holds("Failed")
    assert booth.world.started == ["prepare", "train"]


def test_bad_pictures_are_told_by_the_stage_they_belong_to() -> None:
    booth = Booth()
    booth.world.next_exit = lambda stage: ExitCode.DATA_ERROR
    booth.settle()
    assert booth.world.started == ["prepare"]
    assert booth.condition("DatasetReady")["reason"] == "DataError"
    assert booth.condition("Trained")["reason"] == "NotYet"


def test_a_worker_that_ended_well_without_a_word_is_asked_again() -> None:
    booth = Booth()
    silent = iter([True])

    def forget(report: object) -> None:
        return None

    work = booth.world._work
    booth.world._work = (  # type: ignore[method-assign]
        lambda server, pod, code: (
            forget(work(server, pod, code)) if next(silent, False) else work(server, pod, code)
        )
    )
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["lastFailure"]["reason"] == "ReportMissing"
    assert booth.world.started == ["prepare", "prepare", "train"]


def test_a_failed_job_without_a_pod_is_counted_after_a_while() -> None:
    booth = Booth(retry={"limit": 0})
    booth.world.hold = lambda stage: True
    booth.settle()
    server = booth.simulator.server
    (job,) = booth.jobs()
    (pod,) = server.all("Pod")
    at = booth.simulator.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    failed = {
        "type": "Failed",
        "status": "True",
        "lastTransitionTime": at,
        "reason": "BackoffLimitExceeded",
        "message": "it is over",
    }
    server.set_status("Job", "default", job["metadata"]["name"], {"conditions": [failed]})
    server.edit(
        "Pod", "default", pod["metadata"]["name"], lambda b: b["metadata"].pop("finalizers")
    )
    server.remove("Pod", "default", pod["metadata"]["name"])
    booth.settle()
    assert booth.condition("Failed")["reason"] == "PodLost"
    assert "BackoffLimitExceeded" in booth.condition("Failed")["message"]
    assert booth.simulator.now.second >= 30
