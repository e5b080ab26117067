"""What pods and workers say is read with distrust."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_operator.reading import address_of, newest_worker, report_of, worker_status

REPORT = (
    '{"kind":"Train","outcome":"Succeeded","startedAt":"2026-01-01T00:00:00Z",'
    '"finishedAt":"2026-01-01T01:00:00Z"}'
)


def pod(
    *, message: Any = None, ip: Any = "10.0.0.7", phase: str = "Running", **metadata: Any
) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase, "podIP": ip}
    if message is not None:
        ended = {"terminated": {"exitCode": 0, "message": message}}
        status["containerStatuses"] = [{"name": "side"}, {"name": "worker", "state": ended}]
    return {"metadata": {"name": "p", "uid": "u", **metadata}, "status": status}


def test_the_last_word_of_the_worker_is_read() -> None:
    report = report_of(pod(message=REPORT))
    assert report is not None
    assert report.outcome == "Succeeded"


@pytest.mark.parametrize(
    "message", ["", "killed", "{", "null", "[]", REPORT[:-1], "x" * 5000, "\x00", 7, ["a"]]
)
def test_garbage_in_place_of_a_report_is_no_report(message: Any) -> None:
    assert report_of(pod(message=message)) is None


@given(st.text(max_size=200))
def test_no_text_of_a_worker_is_ever_an_error(text: str) -> None:
    assert report_of(pod(message=text)) is None
    assert worker_status(text.encode("utf-8", "surrogatepass")) is None


def test_a_running_pod_says_nothing_yet() -> None:
    assert report_of(pod()) is None


@pytest.mark.parametrize(
    ("ip", "address"),
    [
        ("10.0.0.7", "10.0.0.7:8080"),
        ("fd00::7", "[fd00::7]:8080"),
        ("evil.example", None),
        ("10.0.0.7/../", None),
        ("", None),
        (None, None),
    ],
)
def test_only_an_ip_address_is_ever_asked(ip: Any, address: str | None) -> None:
    assert address_of(pod(ip=ip)) == address


def test_only_a_running_worker_that_is_not_ending_is_asked() -> None:
    assert address_of(pod(phase="Pending")) is None
    assert address_of(pod(message="done")) is None
    assert address_of(pod(deletionTimestamp="2026-01-01T00:00:00Z")) is None


def test_of_several_workers_the_youngest_is_asked() -> None:
    old = pod(uid="old", creationTimestamp="2026-01-01T00:00:00Z")
    young = pod(uid="young", creationTimestamp="2026-01-02T00:00:00Z", ip="10.0.0.8")
    assert newest_worker([young, old]) == ("young", "10.0.0.8:8080")
    assert newest_worker([]) is None
