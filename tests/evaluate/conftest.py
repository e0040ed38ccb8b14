"""What the tests of benchmarks share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Threads that wait for each other make seconds of milliseconds where the tests have company."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
