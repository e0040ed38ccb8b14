"""One run a folder."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from utils.runtime.errors import InputError
from utils.stores import lock

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys; sys.path.insert(0, sys.argv[1]); from utils.stores.lock import hold_lock; hold_lock(sys.argv[2]); "
)


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


def test_a_folder_is_held_once_however_often_it_is_asked_for(tmp_path):
    for _ in range(2):
        lock.hold_lock(tmp_path / "again")


def test_what_a_crash_left_half_written_goes_when_the_folder_is_held(tmp_path):
    (tmp_path / ".checkpoint-7.partial-99").mkdir()
    (tmp_path / ".checkpoint-7.partial-99" / "model.safetensors").touch()
    for name in (".ann_training_data_3.partial-98", "checkpoint-5", ".other"):
        (tmp_path / name).touch()
    lock.hold_lock(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", ".other", ".lock"}


def test_runs_take_turns_and_the_one_that_waits_says_for_whom(tmp_path, capsys):
    turn = (
        "import sys; sys.path.insert(0, sys.argv[1]); from utils.stores.lock import taking_turns\n"
        "with taking_turns(sys.argv[2], 'encoding'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", turn, ROOT, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        killer = threading.Timer(1, other.kill)
        killer.start()
        with lock.taking_turns(tmp_path, "encoding"):
            assert other.poll() is not None, "the other's turn was over"
    assert f"waiting for process {other.pid} on" in capsys.readouterr().out
    with lock.taking_turns(tmp_path, "encoding"):
        pass
