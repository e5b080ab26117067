"""One CustomResourceDefinition as a manifest; it must not write files."""

from __future__ import annotations

from typing import Any

from kubebooth_api.crd.kinds import Column, Kind
from kubebooth_api.crd.schema import structural, validation
from kubebooth_api.door import Rule
from kubebooth_api.v1alpha1 import GROUP, VERSION

CATEGORY = "kubebooth"

NAME_RULE = Rule(
    "size(self.metadata.name) <= 63",
    "metadata.name must have at most 63 characters: it becomes a label of pods and part of store"
    " keys",
)


def definition(kind: Kind) -> dict[str, Any]:
    """The CRD of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "kubebooth"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [_version(kind)],
        },
    }


def _version(kind: Kind) -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "subresources": _subresources(kind),
        "schema": {"openAPIV3Schema": root_schema(kind)},
    }


def root_schema(kind: Kind) -> dict[str, Any]:
    """Schema of the whole object."""
    return {
        "type": "object",
        "description": kind.purpose,
        "required": ["spec"],
        "x-kubernetes-validations": [validation(NAME_RULE)],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 64},
            "kind": {"type": "string", "maxLength": 64},
            "metadata": {"type": "object"},
            "spec": structural(kind.spec, defaults=True),
            "status": structural(kind.status, defaults=False),
        },
    }


def _column(column: Column) -> dict[str, Any]:
    made: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.wide:
        made["priority"] = 1
    return made


def _subresources(kind: Kind) -> dict[str, Any]:
    made: dict[str, Any] = {"status": {}}
    if kind.scale is not None:
        made["scale"] = {
            "specReplicasPath": kind.scale.spec_path,
            "statusReplicasPath": kind.scale.status_path,
            "labelSelectorPath": kind.scale.selector_path,
        }
    return made
