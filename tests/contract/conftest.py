"""One real API server with the generated CRDs, and an object factory that never lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubebooth_cluster.testing import RealApi

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(control_plane: RealApi) -> RealApi:
    """A real API server that knows the three kinds."""
    control_plane.apply_crds([ROOT / "crds"])
    return control_plane
