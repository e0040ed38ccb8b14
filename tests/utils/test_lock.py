"""One run a folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils import lock
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HOLD = "import sys; sys.path.insert(0, sys.argv[1]); from utils.lock import hold_lock; hold_lock(sys.argv[2]); "


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); sys.stdin.read()", ROOT, tmp_path / "run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_folder_that_is_held_names_its_holder_and_is_free_when_that_is_killed(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0)
    with pytest.raises(InputError, match=rf"run: process {holder.pid} on .*, since .* is at work there"):
        lock.hold_lock(tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock.hold_lock(tmp_path / "run")
    assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()


def test_a_run_that_replaces_another_waits_for_it_to_go(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: holder.stdin.close())
    lock.hold_lock(tmp_path / "run")


def test_other_folders_are_free(tmp_path, holder):
    lock.hold_lock(tmp_path / "another")
