"""A good manifest of each kind, and how a fault is put into it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from kubebooth_api.v1alpha1 import API_VERSION

GOOD: dict[str, dict[str, Any]] = {
    "DreamboothSession": {
        "baseModel": {"variant": "sd15"},
        "concepts": [{"name": "cat", "token": "sks"}],
    },
    "ModelConversion": {
        "source": {"store": {"key": "models/a"}},
        "target": {"format": "Safetensors"},
    },
    "WebUIInstance": {"models": [{"name": "a", "catalog": "sd15"}]},
}


@dataclass(frozen=True)
class Refusal:
    """A good manifest with one fault, and what the refusal must say."""

    name: str
    kind: str
    changes: dict[str, Any]
    """Path below `spec` → value; None removes."""
    says: str
    at: str = ""
    """Field that the refusal names."""
    object_name: str = field(default="bad")


def bad(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "DreamboothSession", changes, says, at)


def bad_conversion(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "ModelConversion", changes, says, at)


def bad_ui(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "WebUIInstance", changes, says, at)


def manifest(row: Refusal) -> dict[str, Any]:
    spec = copy.deepcopy(GOOD[row.kind])
    for path, value in row.changes.items():
        _set(spec, path.split("."), value)
    metadata = {"name": row.object_name, "namespace": "default"}
    return {"apiVersion": API_VERSION, "kind": row.kind, "metadata": metadata, "spec": spec}


def _set(target: Any, path: list[str], value: Any) -> None:
    name: Any = int(path[0]) if isinstance(target, list) else path[0]
    if len(path) == 1 and value is None:
        del target[name]
    elif len(path) == 1 and isinstance(target, list) and name == len(target):
        target.append(value)
    elif len(path) == 1:
        target[name] = value
    elif isinstance(target, dict):
        _set(target.setdefault(name, {}), path[1:], value)
    else:
        _set(target[name], path[1:], value)
