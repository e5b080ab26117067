"""A release in namespaces of its own, removed afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from kubebooth_cluster.testing import RealApi

from tests.chart.helm import helm
from tests.chart.release import Release


@pytest.fixture
def release(control_plane: RealApi) -> Iterator[Release]:
    name = f"t{uuid.uuid4().hex[:6]}"
    namespaces = [control_plane.make_namespace(f"{name}-{part}") for part in ("system", "work")]
    made = Release(control_plane, name, *namespaces)
    yield made
    words = ["uninstall", name, "--ignore-not-found", "--namespace", made.namespace]
    helm(*words, kubeconfig=control_plane.kubeconfig)
    for namespace in namespaces:
        control_plane.api.delete(f"/api/v1/namespaces/{namespace}")
