"""One installation on a cluster whose node runs real pods, shared by the end-to-end tests."""

from __future__ import annotations

import pytest
from kubebooth_cluster.testing import RealApi

from tests.e2e.booth import SHAPES, Booth


@pytest.fixture(scope="session")
def booth(cluster: RealApi) -> Booth:
    """Kubebooth installed by its chart with the bundled store, and the shapes model uploaded."""
    installed = Booth(
        cluster,
        namespace=cluster.make_namespace("kubebooth"),
        sessions=cluster.make_namespace("artists"),
    )
    installed.install()
    installed.upload_model("shapes", SHAPES / "base")
    return installed
