"""No update is lost and nothing is written in vain, on the real API server."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kubebooth_cluster.testing import RealApi, eventually

from tests.integration.operator_core.running import Operator, Probes, operator


def busy_with(running: Operator, value: int, *, seconds: float = 1.5) -> threading.Event:
    """Make the first apply of a value slow; the event tells that it is in progress."""
    begun = threading.Event()

    def slow(body: Mapping[str, Any]) -> float:
        if begun.is_set() or body.get("data") != {"value": str(value)}:
            return 0.0
        begun.set()
        return seconds

    running.client.before_apply = slow
    return begun


def test_a_spec_that_changes_while_a_reconcile_runs_is_not_lost(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace) as running:
        probes.create("one", value=0, jobs=True)
        probes.wait_ready("one", 0)
        begun = busy_with(running, 7)
        probes.edit("one", value=7)
        assert begun.wait(30)
        probes.edit("one", value=9)
        probes.wait_ready("one", 9)
        jobs = probe_api.api.get(f"/apis/batch/v1/namespaces/{probes.namespace}/jobs")["items"]
        assert [job["metadata"]["name"] for job in jobs] == ["one-9"]


def test_a_spec_that_goes_back_while_a_reconcile_runs_ends_where_it_began(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace) as running:
        probes.create("one", value=9)
        probes.wait_ready("one", 9)
        begun = busy_with(running, 5)
        probes.edit("one", value=5)
        assert begun.wait(30)
        probes.edit("one", value=9)
        eventually(lambda: probes.get("one")["status"]["observedGeneration"] == 3, what="look")
        probes.wait_ready("one", 9)


def test_nothing_is_written_when_nothing_changed(probe_api: RealApi, probes: Probes) -> None:
    with operator(probe_api, probes.namespace, resync_s=2.0) as running:
        for name in ("one", "two", "three"):
            probes.create(name, value=1, jobs=True)
        for name in ("one", "two", "three"):
            probes.wait_ready(name, 1)
        writes = running.writes()
        looks = running.metric("kubebooth_reconcile_total")
        lists = running.metric("kubebooth_resyncs_total")
        for name in ("one", "two", "three"):
            path = f"{probes.collection}/{name}"
            probe_api.api.merge(path, {"metadata": {"annotations": {"touched": "yes"}}})
        eventually(lambda: running.metric("kubebooth_reconcile_total") >= looks + 3, what="looks")
        eventually(lambda: running.metric("kubebooth_resyncs_total") >= lists + 8, what="lists")
        assert running.writes() == writes
        assert running.metric("kubebooth_resync_differences_total") == 0


def test_a_restarted_operator_writes_nothing_where_all_is_well(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace):
        probes.create("one", value=1, jobs=True)
        probes.wait_ready("one", 1)
    with operator(probe_api, probes.namespace) as running:
        eventually(lambda: running.metric("kubebooth_reconcile_total") >= 1, what="a look")
        probes.create("two", value=2)
        probes.wait_ready("two", 2)
        requests = "kubebooth_api_requests_total"
        assert running.metric(requests, verb="apply", resource="jobs") == 0
        # The two of the second object: one ConfigMap, one or two status writes.
        assert running.metric(requests, verb="apply", resource="configmaps") == 1
        assert running.metric(requests, verb="patch_status") <= 2


def test_a_stale_status_write_is_refused_and_made_again_from_the_truth(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace) as running:
        probes.create("one", value=1)
        probes.wait_ready("one", 1)
        races = []

        def race() -> None:
            if not races:
                races.append(probes.edit("one", value=3))

        running.client.before_merge = race
        probes.edit("one", value=2)
        probes.wait_ready("one", 3)
        assert len(races) == 1
        assert running.metric("kubebooth_api_requests_total", verb="patch_status", code="409") >= 1


def test_what_others_change_on_a_child_is_put_right_and_what_they_add_is_kept(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace):
        probes.create("one", value=1)
        probes.wait_ready("one", 1)
        path = f"/api/v1/namespaces/{probes.namespace}/configmaps/one"
        change = {"data": {"value": "8", "note": "mine"}, "metadata": {"labels": {"team": "a"}}}
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", **change}
        manifest["metadata"] = {"name": "one", **change["metadata"]}
        probe_api.api.apply(path, manifest, manager="somebody")
        eventually(lambda: probes.value("one") == "1", what="our value")
        there = probes.config_map("one")
        assert there["data"]["note"] == "mine"
        assert there["metadata"]["labels"]["team"] == "a"


def test_a_foreign_object_of_a_childs_name_is_never_adopted(
    probe_api: RealApi, probes: Probes
) -> None:
    foreign = {"metadata": {"name": "one"}, "data": {"theirs": "yes"}}
    before = probe_api.api.post(f"/api/v1/namespaces/{probes.namespace}/configmaps", foreign)
    with operator(probe_api, probes.namespace) as running:
        probes.create("one", value=1)
        eventually(lambda: (probes.get("one").get("status") or {}).get("conditions"), what="word")
        conditions = {c["type"]: c for c in probes.get("one")["status"]["conditions"]}
        assert conditions["Stalled"]["status"] == "True"
        assert conditions["Stalled"]["reason"] == "NameConflict"
        assert conditions["Stalled"]["observedGeneration"] == 1
        assert probes.config_map("one") == before
        eventually(lambda: _reasons(probe_api, probes.namespace), what="an event")
        assert _reasons(probe_api, probes.namespace) == {"NameConflict"}
        writes = running.writes()
        probes.edit("one", value=1, other=1)
        eventually(lambda: probes.get("one")["status"]["observedGeneration"] == 2, what="a look")
        assert probes.config_map("one") == before
        assert running.writes() == writes + 1


def _reasons(api: RealApi, namespace: str) -> set[str]:
    events = api.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    return {event["reason"] for event in events if event["involvedObject"]["kind"] == "Probe"}


def test_the_finalizer_holds_the_object_until_its_plan_lets_it_go(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace):
        probes.create("one", value=1, purge=True)
        probes.wait_ready("one", 1)
        eventually(
            lambda: probes.get("one")["metadata"].get("finalizers") == ["kubebooth.io/purge"],
            what="the finalizer",
        )
        probes.delete("one")
        eventually(lambda: probes.get("one") is None, what="the end of the object")
    assert probes.config_map("one-purged") is None or probes.config_map("one-purged")["data"]


def test_an_object_made_anew_under_its_name_gets_children_of_its_own(
    probe_api: RealApi, probes: Probes
) -> None:
    with operator(probe_api, probes.namespace):
        first = probes.create("one", value=1)
        probes.wait_ready("one", 1)
        probes.delete("one")
        second = probes.create("one", value=1)
        assert first["metadata"]["uid"] != second["metadata"]["uid"]

        def owner() -> Any:
            there = probes.config_map("one")
            return there and there["metadata"]["ownerReferences"][0]["uid"]

        # The first one's ConfigMap is no prey: the garbage collector takes it, then ours is made.
        eventually(lambda: owner() == second["metadata"]["uid"], what="its own", timeout_s=90)
        probes.wait_ready("one", 1)
