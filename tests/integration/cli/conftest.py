"""The desk: CRDs on the real API server, one store for all tests here, a namespace each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubebooth_cluster.testing import RealApi, short_folder
from kubebooth_cluster.weed import Weed

from tests.integration.cli.desk import Desk

CRDS = Path(__file__).resolve().parents[3] / "crds"


@pytest.fixture(scope="session")
def shared_weed() -> Iterator[Weed]:
    for folder in short_folder():
        server = Weed(folder, buckets=("kubebooth",))
        try:
            yield server.start()
        finally:
            server.stop()


@pytest.fixture(scope="session")
def kinds(control_plane: RealApi) -> RealApi:
    control_plane.apply_crds([CRDS])
    return control_plane


@pytest.fixture
def bare_desk(
    kinds: RealApi,
    namespace: str,
    shared_weed: Weed,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    for name in ("KUBECONFIG", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    return Desk(kinds, namespace, shared_weed, capsys)


@pytest.fixture
def desk(bare_desk: Desk) -> Desk:
    bare_desk.install()
    return bare_desk
