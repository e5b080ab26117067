"""One installation on a cluster whose node runs real pods, shared by the end-to-end tests.

With KUBEBOOTH_KUBECONFIG they run on that cluster instead (and KUBEBOOTH_HELM_SET names images that
it can pull); the chaos test, which kills parts of the control plane, always makes its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubebooth_cluster.testing import RealApi

from tests.e2e.booth import SHAPES, Booth
from tests.e2e.given import KUBECONFIG, GivenCluster


@pytest.fixture(scope="module")
def booth(request: pytest.FixtureRequest) -> Iterator[Booth]:
    """Kubebooth installed by its chart with the bundled store, and the shapes model uploaded."""
    cluster: RealApi | GivenCluster
    cluster = GivenCluster(Path(KUBECONFIG)) if KUBECONFIG else request.getfixturevalue("cluster")
    installed = Booth(
        cluster,
        namespace=cluster.make_namespace("kubebooth"),
        sessions=cluster.make_namespace("artists"),
    )
    installed.install()
    installed.upload_model("shapes", SHAPES / "base")
    yield installed
    installed.close()
    # An operator that stayed would serve the sessions of other tests on the shared cluster.
    installed.uninstall()
