"""The kinds that are not served yet say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubebooth_operator.doors import Observed, Plan
from kubebooth_operator.settings import Settings
from kubebooth_operator.unserved import plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPECS: dict[str, dict[str, Any]] = {
    "WebUIInstance": {"models": [{"name": "rex", "session": {"name": "rex"}}]},
}


def _plan(kind: str, spec: dict[str, Any], status: Any = None, *, later_s: int = 0) -> Plan:
    parent = {
        "apiVersion": "kubebooth.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "a", "namespace": "b", "uid": "c", "generation": 3},
        "spec": spec,
        **({"status": status} if status else {}),
    }
    return plan(Observed(parent=parent), NOW + timedelta(seconds=later_s), Settings())


@pytest.mark.parametrize("kind", SPECS)
def test_a_valid_object_is_told_that_nothing_happens(kind: str) -> None:
    planned = _plan(kind, SPECS[kind])
    assert planned.status is not None
    conditions = {c["type"]: c for c in planned.status["conditions"]}
    assert conditions["Stalled"]["status"] == "True"
    assert conditions["Stalled"]["reason"] == "NotSupported"
    assert conditions["Stalled"]["observedGeneration"] == 3
    assert conditions["Ready"]["status"] == "False"
    assert planned.apply == ()
    assert [event.reason for event in planned.events] == ["NotSupported"]


@pytest.mark.parametrize("kind", SPECS)
def test_faults_of_the_spec_come_first(kind: str) -> None:
    planned = _plan(kind, {**SPECS[kind], "nonsense": 1})
    assert planned.status is not None
    assert "spec.nonsense" in planned.status["message"]
    assert planned.status["conditions"][2]["reason"] == "InvalidSpec"


@pytest.mark.parametrize("kind", SPECS)
def test_the_same_is_not_told_twice(kind: str) -> None:
    first = _plan(kind, SPECS[kind])
    second = _plan(kind, SPECS[kind], first.status, later_s=60)
    assert second.status == first.status
    assert second.events == ()
