"""Runs the tests on the simulated CUDA device in a process of its own, for it must be there before torch is imported.

By hand:

    python -m pytest -p tests.cuda.device tests/cuda/simulated -k planted
    python -m pytest -p tests.cuda.device tests/gpu         # the tests of real GPUs
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.library import Unavailable, built

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(7200)  # of the long form; the short one takes a minute
def test_the_project_on_the_simulated_device(tmp_path):
    try:
        built()
    except Unavailable as reason:
        pytest.skip(str(reason))
    command = [sys.executable, "-m", "pytest", "-p", "tests.cuda.device", "-p", "no:cacheprovider", "-n", "0", "-q"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "own"), "tests/cuda/simulated", "tests/gpu"],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
