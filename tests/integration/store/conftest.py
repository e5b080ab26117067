"""Stores on a real SeaweedFS, one server for all tests of this folder, and in a folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubebooth_cluster.weed import Weed
from kubebooth_store import Store, open_store

from tests.integration.store.liar import Liar

Opener = Callable[..., Store]


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    server = Weed(tmp_path_factory.mktemp("weed"), buckets=("tests",))
    try:
        yield server.start()
    finally:
        server.kill()
        server.stop()


@pytest.fixture
def open_s3(weed: Weed) -> Opener:
    """Open the test's own prefix, as often as it likes, through whatever endpoint."""
    below = f"s3://tests/{uuid.uuid4().hex[:12]}"

    def opener(*, endpoint: str = weed.url, timeout_s: float = 30, **more: str | int) -> Store:
        keys = {"access_key": weed.access_key, "secret_key": weed.secret_key, **more}
        return open_store(below, endpoint=endpoint, timeout_s=timeout_s, **keys)  # type: ignore[arg-type]

    return opener


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of store in turn."""
    if request.param == "folder":
        return open_store((tmp_path / "store").as_uri(), timeout_s=30)
    opener: Opener = request.getfixturevalue("open_s3")
    return opener()


@pytest.fixture
def liar(weed: Weed) -> Iterator[Liar]:
    with Liar(weed.endpoint) as proxy:
        yield proxy
