from pathlib import Path

import pytest
import torch

from tests.tiny.folder_session import FolderSession, folder_session
from tests.tiny.pipeline import write_pictures, write_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two spinning threads on two busy cores are far slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest base model as a Diffusers layout."""
    return write_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def session(tmp_path: Path, tiny_base: Path) -> FolderSession:
    """A session on the tiny model with three pictures and a caption for each."""
    return folder_session(
        tmp_path / "store",
        base=tiny_base,
        pictures=write_pictures(tmp_path / "pictures"),
        resolution=64,
        prompts=["a sks square", "a sks square on grass", "a sks square"],
    )
