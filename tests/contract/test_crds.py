"""The real API server takes the CRDs and shows people what they say."""

from __future__ import annotations

from typing import Any

import pytest
from kubebooth_api.crd.definition import definition
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_cluster.testing import RealApi

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def crd(server: RealApi, kind: Kind) -> dict[str, Any]:
    name = definition(kind)["metadata"]["name"]
    got: dict[str, Any] = server.api.get(
        f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    )
    return got


@every_kind
def test_a_crd_is_established_and_its_schema_is_structural(server: RealApi, kind: Kind) -> None:
    conditions = {c["type"]: c for c in crd(server, kind)["status"]["conditions"]}
    assert conditions["Established"]["status"] == "True"
    assert conditions["NamesAccepted"]["status"] == "True"
    assert "NonStructuralSchema" not in conditions
