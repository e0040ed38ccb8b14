"""utils/runtime/errors.py: how a script ends, as the person sees it who started it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from utils.runtime.errors import InputError, run
from utils.stores.lock import hold_lock
from utils.runtime.logs import say

def main():
    Path(sys.argv[2]).mkdir(exist_ok=True)
    hold_lock(sys.argv[2])
    say(f"reading {sys.argv[2]}")
    raise InputError("is wrong", sys.argv[2])

run(main)
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {},
    ],
)
@pytest.mark.parametrize("name", ["caf\u00e9 \u732b".encode(), b"caf\xe9 of latin-1"])
def test_a_path_with_an_accent_is_printed_whatever_standard_output_can_say(script, tmp_path, settings, name):
    errors = tmp_path / "errors"
    finished = subprocess.run(
        [sys.executable, script, ROOT, os.fsencode(tmp_path) + b"/" + name],
        env=os.environ | {"ANCE_ERRORS": str(errors)} | settings,
        capture_output=True,
        check=False,
    )
    assert (finished.returncode, b"Traceback" in finished.stderr) == (2, False), finished.stderr
    assert b"reading" in finished.stdout
    assert finished.stderr.startswith(b"error: ")
    assert errors.read_bytes().endswith(b": is wrong\n")


def test_torchrun_calls_the_error_the_root_cause(script, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", script]
    finished = subprocess.run([*command, ROOT, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    *_, cause, line = finished.stderr.strip().splitlines()
    assert cause.split(":", 1)[1].strip() == f"error (rank 0): {tmp_path / 'x'}: is wrong"
    assert set(line) == {"="}
    assert "new message format" not in finished.stderr
