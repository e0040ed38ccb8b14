"""commands/install.sh with an interpreter of shell script in place of Python: no network, no real packages."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.processes import heed
from tests.workplace import wait_for
from utils.runtime.stopping import SIGNALS

SCRIPT = Path(__file__).resolve().parents[2] / "commands" / "install.sh"

# Plays `python --version`, `python -m venv FOLDER` and, as that folder's bin/python, `python -m pip install`. It logs
# what it was asked for in $STUB/calls; $STUB/pip-says, where it exists, is run in place of a successful pip.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    --version) cat "$STUB/version" ;;
    "-m venv "*)
        echo "venv" >> "$STUB/calls"
        [[ ! -e "$STUB/no-venv" ]] || { echo "ensurepip is not available" >&2; exit 1; }
        mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
    "-m pip --version") echo "pip 99" ;;
    "-m pip install "*)
        verified=""
        while [[ "$1" != --requirement ]]; do
            [[ "$1" != --no-deps && "$1" != --require-hashes ]] || verified+=" $1"
            shift
        done
        echo "pip $(basename "$2") $(basename "$4")$verified" >> "$STUB/calls"
        [[ ! -e "$STUB/pip-says" ]] || { source "$STUB/pip-says"; } ;;
    *) echo "the stub does not know: $*" >&2; exit 99 ;;
esac
"""


class Machine:
    """A checkout with install.sh and requirement files, a stub interpreter, and an environment folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.stub, self.venv = folder / "a checkout", folder / "stub", folder / "an environment"
        self.programs = folder / "programs"
        for made in (self.root / "commands", self.stub, self.programs):
            made.mkdir(parents=True)
        shutil.copy(SCRIPT, self.root / "commands")
        for extra in ("", "-gpu", "-dev", "-demo", "-data"):
            (self.root / f"requirements{extra}.txt").write_text(f"requirements{extra}==1\n")
        self.python = self.stub / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        (self.stub / "version").write_text("Python 3.11.7\n")
        self.driver(answers=False)

    def driver(self, answers: bool) -> None:
        """Puts an nvidia-smi on the path that finds a driver, or none."""
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nexit {0 if answers else 9}\n")
        program.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHON": str(self.python),
            "STUB": str(self.stub),
            "ANCE_VENV": str(self.venv),
        }

    @property
    def command(self) -> list[str]:
        return ["bash", str(self.root / "commands" / "install.sh")]

    def install(self, *extras: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.command, *extras],
            env=self.environment | environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """What the stub was asked for since the last time."""
        log = self.stub / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_the_first_call_installs_and_the_second_is_silent_and_does_nothing(machine):
    first = machine.install()
    assert first.returncode == 0, first.stderr
    assert first.stdout == "", "stdout belongs to the script that calls this one"
    assert "requirements.txt" in first.stderr
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]
    second = machine.install()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert machine.calls() == []


def test_extras_are_installed_only_when_asked_for_and_under_the_same_pins(machine):
    machine.install()
    machine.calls()
    machine.install("dev")
    assert machine.calls() == ["pip requirements-dev.txt requirements.txt"]
    machine.install("demo", "data", "dev")
    assert machine.calls() == [f"pip requirements-{extra}.txt requirements.txt" for extra in ("demo", "data")]
    machine.install("dev", "demo")
    assert machine.calls() == []


def test_a_file_with_hashes_is_installed_by_them_and_nothing_else_with_it(machine):
    machine.install()
    machine.calls()
    (machine.root / "requirements-demo.txt").write_text("weights==1 --hash=sha256:00\n")
    machine.install("demo")
    assert machine.calls() == ["pip requirements-demo.txt requirements.txt --no-deps --require-hashes"]


def test_a_changed_requirements_file_is_installed_again_into_the_same_environment(machine):
    machine.install("dev")
    machine.calls()
    (machine.root / "requirements-dev.txt").write_text("requirements-dev==2\n")
    machine.install()
    assert machine.calls() == []
    machine.install("dev")
    assert machine.calls() == ["pip requirements-dev.txt requirements.txt"]
    (machine.root / "requirements.txt").write_text("requirements==2\n")
    machine.install("dev")
    assert machine.calls() == ["pip requirements.txt requirements.txt", "pip requirements-dev.txt requirements.txt"]


def test_a_changed_interpreter_is_installed_for_again(machine):
    machine.install()
    machine.calls()
    (machine.stub / "version").write_text("Python 3.11.8\n")
    machine.install()
    assert machine.calls() == ["pip requirements.txt requirements.txt"]


def test_a_failing_pip_is_told_with_its_own_words_and_tried_again(machine):
    (machine.stub / "pip-says").write_text("echo 'ERROR: No matching distribution' >&2; exit 1")
    finished = machine.install("dev")
    assert finished.returncode != 0
    assert "ERROR: No matching distribution" in finished.stderr
    assert "error: pip could not install requirements.txt (exit code 1)" in finished.stderr
    assert "run this again" in finished.stderr
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]
    (machine.stub / "pip-says").unlink()
    assert machine.install().returncode == 0
    assert machine.calls() == ["pip requirements.txt requirements.txt"]


@pytest.mark.parametrize("whole_before", [False, True])
def test_a_killed_installation_is_made_anew_from_an_empty_environment(machine, whole_before):
    if whole_before:
        machine.install()
    (machine.stub / "pip-says").write_text('touch "$(dirname "$0")/half-a-package"; kill -KILL $PPID $$')
    assert machine.install("dev").returncode == -signal.SIGKILL
    assert (machine.venv / "bin" / "half-a-package").exists()
    (machine.stub / "pip-says").unlink()
    machine.calls()
    assert machine.install().returncode == 0
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]
    assert not (machine.venv / "bin" / "half-a-package").exists()


def test_a_pip_that_a_signal_ended_is_made_anew_too(machine):
    (machine.stub / "pip-says").write_text("kill -KILL $$")
    assert machine.install().returncode == 1
    (machine.stub / "pip-says").unlink()
    machine.calls()
    machine.install()
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_pip_and_the_next_call_begins_anew(machine, number):
    (machine.stub / "pip-says").write_text('echo $$ > "$STUB/pip"; exec sleep 60')
    process = subprocess.Popen(machine.command, env=machine.environment, stderr=subprocess.PIPE, preexec_fn=heed)
    wait_for(lambda: (machine.stub / "pip").exists() and (machine.stub / "pip").read_text(), process)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not Path("/proc", (machine.stub / "pip").read_text().strip()).exists()
    (machine.stub / "pip-says").unlink()
    machine.calls()
    assert machine.install().returncode == 0
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]


def test_an_environment_that_lost_its_interpreter_or_was_moved_is_made_anew(machine):
    machine.install()
    machine.calls()
    (machine.venv / "bin" / "python").unlink()
    machine.install()
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]
    machine.venv = machine.venv.rename(machine.venv.with_name("moved"))
    machine.install()
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]


def test_a_driver_brings_the_gpu_requirements_and_they_stay_where_it_is_gone(machine):
    machine.driver(answers=True)
    machine.install("dev")
    assert machine.calls() == [
        "venv",
        "pip requirements-gpu.txt requirements-gpu.txt",
        "pip requirements-dev.txt requirements-gpu.txt",
    ]
    machine.driver(answers=False)
    assert machine.install("dev").stderr == ""
    assert machine.calls() == []


def test_a_driver_that_comes_later_makes_the_environment_anew(machine):
    machine.install()
    machine.calls()
    machine.driver(answers=True)
    machine.install()
    assert machine.calls() == ["venv", "pip requirements-gpu.txt requirements-gpu.txt"]


@pytest.mark.parametrize("version", ["Python 3.10.14", "Python 2.7.18", ""])
def test_an_interpreter_too_old_or_broken_is_told(machine, version):
    (machine.stub / "version").write_text(version)
    finished = machine.install()
    assert finished.returncode != 0
    assert "no Python 3.11 or newer" in finished.stderr
    assert "PYTHON=" in finished.stderr
    assert machine.calls() == []


def test_a_missing_venv_module_is_told_and_the_next_call_tries_again(machine):
    (machine.stub / "no-venv").touch()
    finished = machine.install()
    assert finished.returncode != 0
    assert "ensurepip is not available" in finished.stderr
    assert "python3-venv" in finished.stderr
    (machine.stub / "no-venv").unlink()
    assert machine.install().returncode == 0


def test_a_folder_of_something_else_is_left_alone(machine):
    machine.venv.mkdir()
    (machine.venv / "thesis.tex").write_text("years of work")
    finished = machine.install()
    assert finished.returncode != 0
    assert "no virtual environment" in finished.stderr
    assert [path.name for path in machine.venv.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_at_once_install_once(machine):
    (machine.stub / "pip-says").write_text('touch "$STUB/installing"; sleep 1')
    first = subprocess.Popen(machine.command, env=machine.environment, stderr=subprocess.PIPE)
    while not (machine.stub / "installing").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = machine.install()
    assert second.returncode == 0
    assert "waiting" in second.stderr
    first.communicate()
    assert first.returncode == 0
    assert machine.calls() == ["venv", "pip requirements.txt requirements.txt"]


def test_misuse_is_told(machine):
    assert "unknown argument 'gpu'" in machine.install("gpu").stderr
    assert "absolute" in machine.install(ANCE_VENV="venv").stderr
    assert "ANCE_VENV" in machine.install("--help").stdout
    assert machine.calls() == []
