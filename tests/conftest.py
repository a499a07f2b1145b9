"""Fixtures of several test files."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Models this small are slower on more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
