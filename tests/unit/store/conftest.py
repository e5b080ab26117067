"""A folder store for the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubebooth_store import Store, open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root.as_uri(), timeout_s=5)
