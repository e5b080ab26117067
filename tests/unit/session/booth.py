"""A session in the simulator with a scripted world, and the words to talk about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from kubebooth_operator.conversion.plan import plan as plan_conversion
from kubebooth_operator.doors import Key, Observed, Plan
from kubebooth_operator.jobs.names import RETRY_ANNOTATION
from kubebooth_operator.kinds import Kind, KindPlan
from kubebooth_operator.session.plan import plan
from kubebooth_operator.settings import Settings

from tests.unit.operator_core.simulator import Simulator
from tests.unit.session.world import World, jobs_outlive_their_pods

SETTINGS = Settings(
    store_endpoint="http://store.kubebooth:8333",
    store_bucket="kubebooth",
    trainer_image="ghcr.io/kubebooth/trainer:0.1.0",
)
Json = dict[str, Any]


def spec(**fields: Any) -> Json:
    """A small valid spec; `fields` replace whole fields."""
    return {
        "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/shapes"}}},
        "concepts": [{"name": "dog", "token": "sks", "className": "dog"}],
        "training": {"textEncoder": {"steps": 10}, "denoiser": {"steps": 20}},
        "retry": {"limit": 3, "backoffSeconds": 10},
        **fields,
    }


def session(name: str = "rex", **fields: Any) -> Json:
    """A manifest of a session."""
    return {
        "apiVersion": "kubebooth.io/v1alpha1",
        "kind": "DreamboothSession",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec(**fields),
    }


class Booth:
    """One session, one operator, one world."""

    def __init__(self, *, seed: int = 0, settings: Settings = SETTINGS, **fields: Any) -> None:
        self.settings = settings
        self.plans = 0
        session_kind = Kind("dreamboothsessions", "DreamboothSession", self._plan)
        conversion_kind = Kind("modelconversions", "ModelConversion", self._plan_conversion)
        kinds = {kind.plural: kind for kind in (session_kind, conversion_kind)}
        self.simulator = Simulator(kinds, seed=seed)
        jobs_outlive_their_pods(self.simulator.server)
        self.world = World(self.simulator)
        self.simulator.worlds.append(self.world)
        self.key: Key = self.simulator.create(self.manifest(**fields))

    def manifest(self, **fields: Any) -> Json:
        """The object that the world begins with."""
        return session(**fields)

    def _plan(self, observed: Observed, now: datetime) -> Plan:
        self.plans += 1
        return self._checked(plan, observed, now)

    def _plan_conversion(self, observed: Observed, now: datetime) -> Plan:
        return self._checked(plan_conversion, observed, now)

    def _checked(self, plan: KindPlan, observed: Observed, now: datetime) -> Plan:
        planned = plan(observed, now, self.settings)
        assert all(ref.foreground for ref in planned.delete if ref.kind == "Job")
        assert plan(observed, now, self.settings) == planned
        if planned.status is not None:
            _is_settled(plan, observed, planned, now, self.settings)
        return planned

    def settle(self) -> None:
        """Until nothing changes, and then look once more: nothing may be written."""
        self.simulator.settle()
        assert self.simulator.quiet()
        assert not self.simulator.restless()
        assert self.world.most_train_pods <= 1

    def edit(self, **fields: Any) -> None:
        """Change fields of the spec."""
        self.simulator.edit_spec(self.key, **fields)

    def retry(self, token: str) -> None:
        """What `kubectl kubebooth retry` does."""

        def annotate(body: Json) -> None:
            body["metadata"].setdefault("annotations", {})[RETRY_ANNOTATION] = token

        kind = self.simulator.kinds[self.key.plural].kind
        self.simulator.server.edit(kind, self.key.namespace, self.key.name, annotate)

    @property
    def there(self) -> bool:
        """Whether the object still exists."""
        return self.simulator.parent(self.key) is not None

    @property
    def status(self) -> Json:
        """The session's status."""
        parent = self.simulator.parent(self.key)
        assert parent is not None
        status: Json = parent.get("status") or {}
        return status

    def condition(self, kind: str) -> Json:
        """One condition; empty when there is none."""
        conditions = self.status.get("conditions") or ()
        return next((c for c in conditions if c["type"] == kind), {})

    def holds(self, kind: str) -> bool:
        """Whether a condition is True."""
        return self.condition(kind).get("status") == "True"

    def finished_at(self) -> datetime:
        """When the object was completed."""
        return datetime.fromisoformat(self.status["completedAt"])

    def jobs(self) -> list[Json]:
        """All Jobs."""
        return self.simulator.server.all("Job")


def _is_settled(
    plan: KindPlan, observed: Observed, planned: Plan, now: datetime, settings: Settings
) -> None:
    """What was written is not written again."""
    parent = {**observed.parent, "status": planned.status}
    again = plan(replace(observed, parent=parent), now, settings)
    assert again.status == planned.status
    assert again.events == ()
