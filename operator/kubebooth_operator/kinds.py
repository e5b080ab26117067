"""The kinds that are reconciled, and the plan of each; it knows no cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from kubebooth_operator import unserved
from kubebooth_operator.conversion import plan as conversion
from kubebooth_operator.doors import Observed, Plan, PlanFunction
from kubebooth_operator.session import plan as session
from kubebooth_operator.settings import Settings

KindPlan = Callable[[Observed, datetime, Settings], Plan]
"""`(observed, now, settings) -> Plan`: pure."""


@dataclass(frozen=True)
class Kind:
    """One custom resource and how it is planned."""

    plural: str
    kind: str
    plan: PlanFunction


Kinds = Mapping[str, Kind]
"""By plural."""


def bind(plural: str, kind: str, plan: KindPlan, settings: Settings) -> Kind:
    """A kind whose plan knows the settings."""
    return Kind(plural, kind, lambda observed, now: plan(observed, now, settings))


def plurals(kinds: Kinds) -> dict[str, str]:
    """Plural → kind, as `Resources` wants it."""
    return {kind.plural: kind.kind for kind in kinds.values()}


def registry(settings: Settings) -> Kinds:
    """Every kind that is served, bound to the settings."""
    kinds = (
        bind("dreamboothsessions", "DreamboothSession", session.plan, settings),
        bind("modelconversions", "ModelConversion", conversion.plan, settings),
        bind("webuiinstances", "WebUIInstance", unserved.plan, settings),
    )
    return {kind.plural: kind for kind in kinds}
