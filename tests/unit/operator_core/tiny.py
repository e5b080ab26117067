"""A kind small enough to see through: one ConfigMap and one Job per object, for core tests."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kubebooth_operator.doors import ChildRef, Event, Observed, Plan
from kubebooth_operator.kinds import Kind
from kubebooth_operator.resources import API_VERSION, FINALIZER

PLURAL = "dreamboothsessions"
KIND = "DreamboothSession"


def tiny_plan(observed: Observed, now: datetime) -> Plan:
    """Keep `spec.value` in a ConfigMap and, while `spec.jobs` is set, one Job per value; the
    status repeats what is there. `spec.purge` wants the finalizer, and a last ConfigMap first."""
    parent = observed.parent
    spec, metadata = parent["spec"], parent["metadata"]
    name, value = metadata["name"], spec.get("value", 0)
    if metadata.get("deletionTimestamp"):
        return _farewell(observed)
    wanted = {f"{name}-{value}"} if spec.get("jobs") else set()
    jobs = {c["metadata"]["name"]: c for c in observed.children if c["kind"] == "Job"}
    maps = [c for c in observed.children if c["kind"] == "ConfigMap"]
    seen = maps[0]["data"]["value"] if maps else None
    ready = seen == str(value) and set(jobs) == wanted
    return Plan(
        apply=(_config_map(name, value), *(_job(job) for job in sorted(wanted))),
        delete=tuple(
            ChildRef("batch/v1", "Job", metadata["namespace"], job, body["metadata"]["uid"])
            for job, body in sorted(jobs.items())
            if job not in wanted
        ),
        status={
            "observedGeneration": metadata["generation"],
            "phase": "Ready" if ready else "Reconciling",
            "message": f"value {value}",
        },
        finalizer=bool(spec.get("purge")),
        events=(Event("Normal", "Ready", f"value {value}"),),
        requeue_after_s=None if ready else 5.0,
        decision=f"value {value}",
    )


def _farewell(observed: Observed) -> Plan:
    name = observed.parent["metadata"]["name"]
    if FINALIZER not in (observed.parent["metadata"].get("finalizers") or []):
        return Plan(decision="being deleted")
    purged = any(c["metadata"]["name"] == f"{name}-purged" for c in observed.children)
    if purged:
        return Plan(finalizer=False, decision="purged")
    return Plan(apply=(_config_map(f"{name}-purged", 0),), requeue_after_s=1.0, decision="purging")


def _config_map(name: str, value: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"kubebooth.io/session": name}},
        "data": {"value": str(value)},
    }


def _job(name: str) -> dict[str, Any]:
    container = {"name": "worker", "image": "worker:1", "command": ["true"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


KINDS = {PLURAL: Kind(PLURAL, KIND, tiny_plan)}


def tiny(name: str = "one", **spec: Any) -> dict[str, Any]:
    """A manifest of the tiny kind."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }
