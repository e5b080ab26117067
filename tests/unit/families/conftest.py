import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two spinning threads on two busy cores are far slower than one."""
    torch.set_num_threads(1)
