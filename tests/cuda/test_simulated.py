"""Runs the tests on the simulated CUDA device, each file in a process of its own.

The device must be there before torch is imported. By hand:

    python -m pytest -p tests.cuda.device tests/cuda/simulated -k planted
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.library import Unavailable, built

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in Path(__file__).with_name("simulated").glob("test_*.py"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_on_the_simulated_device(file, tmp_path):
    try:
        built()
    except Unavailable as reason:
        pytest.skip(str(reason))
    command = [sys.executable, "-m", "pytest", "-p", "tests.cuda.device", "-p", "no:cacheprovider", "-n", "0", "-q"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "own"), str(file)],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{file}:\n{done.stdout}{done.stderr}", pytrace=False)
