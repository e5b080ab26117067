"""Rule by rule: what the real API server refuses, and that the message names the cure."""

from __future__ import annotations

import re
import typing
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kubebooth_api.crd.definition import NAME_RULE
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1 import GROUP, VERSION
from kubebooth_cluster.api import ApiError
from kubebooth_cluster.testing import RealApi

from tests.contract.broken_rules import RULES
from tests.contract.refusal import Refusal, manifest
from tests.contract.wrong_shapes import SHAPES

BY_KIND = {kind.kind: kind for kind in KINDS}
IMMUTABLE = "source is immutable; create another ModelConversion for another source"


def collection(kind: Kind, namespace: str = "default") -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{kind.plural}"


def refused(server: RealApi, row: Refusal) -> str:
    """What the API server says to a faulty manifest, decoded from its JSON quoting."""
    path = f"{collection(BY_KIND[row.kind])}?dryRun=All&fieldValidation=Strict"
    with pytest.raises(ApiError) as caught:
        server.api.post(path, manifest(row))
    assert caught.value.code in {400, 422}
    return re.sub(r"\s+", " ", str(caught.value))


def doors(model: type[Door]) -> Iterator[type[Door]]:
    """A model class and every class below it."""
    yield model
    for info in model.model_fields.values():
        for found in _doors_of(info.annotation):
            yield from doors(found)


def _doors_of(annotation: Any) -> Iterator[type[Door]]:
    if isinstance(annotation, type) and issubclass(annotation, Door):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _doors_of(argument)


def every_rule() -> set[Rule]:
    models = [model for kind in KINDS for part in (kind.spec, kind.status) for model in doors(part)]
    return {rule for model in models for rule in model.rules} | {NAME_RULE}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_manifest_that_faults_are_put_into_is_accepted(server: RealApi, kind: Kind) -> None:
    row = Refusal("good", kind.kind, {}, "")
    path = f"{collection(kind)}?dryRun=All&fieldValidation=Strict"
    assert server.api.post(path, manifest(row))["kind"] == kind.kind


@pytest.mark.parametrize("row", RULES, ids=lambda row: row.name)
def test_a_broken_rule_is_refused_with_its_cure(server: RealApi, row: Refusal) -> None:
    said = refused(server, row)
    assert row.says in said
    assert row.at in said


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.name)
def test_a_wrong_shape_is_refused_by_field(server: RealApi, row: Refusal) -> None:
    assert row.says in refused(server, row)


def test_the_source_of_a_conversion_cannot_be_changed_but_the_rest_can(server: RealApi) -> None:
    kind = BY_KIND["ModelConversion"]
    name = f"frozen-{uuid.uuid4().hex[:8]}"
    row = Refusal("good", kind.kind, {}, "", object_name=name)
    server.api.post(collection(kind), manifest(row))
    path = f"{collection(kind)}/{name}"
    changed = server.api.merge(path, {"spec": {"verify": {"load": True}}})
    assert changed["spec"]["verify"]["load"] is True
    with pytest.raises(ApiError, match=IMMUTABLE):
        server.api.merge(path, {"spec": {"source": {"store": {"key": "models/b"}}}})
    server.api.delete(path)


def test_every_rule_of_every_class_has_a_manifest_that_breaks_it() -> None:
    tested = {row.says for row in RULES} | {IMMUTABLE}
    untested = {rule.message for rule in every_rule()} - tested
    assert untested == set()


def test_no_manifest_claims_a_message_that_no_rule_has() -> None:
    assert {row.says for row in RULES} - {rule.message for rule in every_rule()} == set()
