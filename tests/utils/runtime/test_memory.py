import resource
import sys

import pytest
import torch

from tests.processes import run_processes
from utils.runtime.memory import keep_freed_memory

PAGES = 2**14  # of a block, at the usual 4 KiB
TIMES = 8


def faults() -> int:
    """Pages that Linux had to find for `TIMES` blocks, each freed before the next."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.zeros(PAGES * resource.getpagesize(), dtype=torch.int8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_by_turns() -> list[int]:
    found = [faults()]
    keep_freed_memory()
    faults()
    return [*found, faults()]


@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc")
def test_freed_memory_is_kept():
    ((before, kept),) = run_processes(faults_by_turns, 1)
    assert before >= TIMES * PAGES
    # A small block in the middle of a free one moves the next: it may happen, not each time.
    assert kept <= TIMES // 2 * PAGES
