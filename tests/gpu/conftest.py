"""What a GPU computes, held to what the CPU does. The tests run where CUDA answers, and are skipped elsewhere.

    python -m pytest tests/gpu

tests/cuda/test_simulated.py runs them on the simulated device: so they are known to work before somebody has a GPU.
"""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

SIMULATED = "tests.cuda.device" in sys.modules
GPUS = 2 if os.environ.get("ANCE_CUDA_VARIANTS") == "all" else 1  # that are simulated


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The first GPU."""
    if SIMULATED:
        from tests.cuda.device import simulated_cuda

        with simulated_cuda((9, 0), gpus=GPUS):
            yield torch.device("cuda", 0)
    elif torch.cuda.is_available():
        yield torch.device("cuda", 0)
    else:
        pytest.skip("needs a GPU: torch finds no CUDA device")
