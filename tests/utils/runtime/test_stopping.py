"""Signals: what they ask for, and that a second one ends a process only where it is one."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.processes import heed
from utils.runtime import stopping
from utils.runtime.stopping import EXIT_CODE, Stopped, StopRequest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of before, afterwards."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_request_is_noted_and_the_signal_that_a_launcher_passes_on_is_the_same_one():
    asked = StopRequest()
    assert not asked
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert asked
    assert asked.name == "SIGINT"


def test_a_request_that_raises_does_so_once():
    StopRequest(raises=True)
    with pytest.raises(Stopped, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


# A signal that comes just before a sleep is seen after it, hence the short ones.
SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from utils.runtime import errors
from utils.stores.files import atomic_file
def sleep(seconds):
    for _ in range(round(20 * seconds)):
        time.sleep(0.05)
def explain(error):
    print("explaining", flush=True)
    sleep(5)
    return f"{error}, and why"
errors.explanations.append(explain)
def main():
    if sys.argv[3] == "lost":
        raise ValueError("a peer is lost")
    with atomic_file(sys.argv[2]) as handle:
        handle.write("half")
        try:
            print("at work", flush=True)
            sleep(60)
        finally:
            print("cleaning up", flush=True)
            sleep(float(sys.argv[3]))
errors.run(main)
"""


def start(
    path: Path, cleaning: float | str, says: str = "at work", ignoring: tuple[int, ...] = ()
) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, ROOT, path, str(cleaning)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, preexec_fn=partial(heed, *ignoring))
    assert process.stdout.readline() == f"{says}\n"
    return process


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_script_that_is_asked_to_stop_says_so_in_a_line_and_leaves_nothing_half_written(tmp_path, number):
    process = start(tmp_path / "file", 0)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE
    assert stderr == f"stopped by {number.name}: the same command goes on from what is done\n"
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_a_closed_terminal_is_no_signal(tmp_path):
    process = start(tmp_path / "file", 0, ignoring=(signal.SIGHUP,))
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE


def test_a_signal_while_an_error_is_explained_does_not_keep_it_from_being_told(tmp_path):
    process = start(tmp_path / "file", "lost", says="explaining")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (2, "error: a peer is lost, and why\n")


GONE = """
import sys
sys.path.insert(0, sys.argv[1])
from utils.runtime import errors, logs
def main():
    for _ in range(3):
        logs.say("x" * 9999)
    raise errors.InputError("the reason")
errors.run(main)
"""


@pytest.mark.parametrize("where", ["/dev/full", "a pipe"])
def test_where_nobody_reads_the_lines_the_work_goes_on_and_its_end_is_told(where):
    command = [sys.executable, "-c", GONE, ROOT]
    if where == "a pipe":
        out, written = os.pipe()
        os.close(out)
    else:
        written = os.open(where, os.O_WRONLY)
    process = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(written)
    assert (process.returncode, process.stderr) == (2, "error: the reason\n")


def test_a_later_second_signal_ends_a_script_at_once(tmp_path):
    process = start(tmp_path / "file", 60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning up\n"
    time.sleep(stopping.SAME_SECONDS + 0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
