"""A namespace with the tiny kind on the real API server."""

from __future__ import annotations

import pytest
from kubebooth_cluster.testing import RealApi

from tests.integration.operator_core.running import CRD, Probes


@pytest.fixture(scope="session")
def probe_api(control_plane: RealApi) -> RealApi:
    """The API server with the tiny kind."""
    control_plane.apply_crds([CRD])
    return control_plane


@pytest.fixture
def probes(probe_api: RealApi, namespace: str) -> Probes:
    """Objects of the tiny kind in the test's namespace."""
    return Probes(probe_api, namespace)
