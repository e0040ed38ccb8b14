"""What holds of every script of commands/, with a stub for Python."""

import os
import re
import subprocess

import pytest

from tests.commands.stub_environment import COMMANDS, Checkout

ALL = {path.name: path.read_text() for path in COMMANDS.glob("*.s*")}
SOURCED = {name for text in ALL.values() for name in re.findall(r"^source .*/(\w+\.sh)", text, re.MULTILINE)}
SCRIPTS = sorted(ALL.keys() - SOURCED - {"test.sh"})  # whose --help is pytest's


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    checkout.work = checkout.root
    return checkout


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_exported_cdpath_leads_nowhere_else(checkout, script):
    elsewhere = checkout.root.parent / "elsewhere"
    for name in ("commands", "raw", "initial", "sets/arguana"):
        (elsewhere / name).mkdir(parents=True)
        (checkout.root / name).mkdir(parents=True, exist_ok=True)
    (checkout.root / "runs" / "demo").mkdir(parents=True)
    arguments = {
        "run_evaluate.sh": ("sets/arguana", "--checkpoint", "a/b", "--out_dir", "runs/o"),
        "run_ance.sh": ("--data_dir", "raw", "--out_dir", "runs/o", "--checkpoint", "initial"),
        "run_comparison.sh": ("--data_dir", "raw", "--out_dir", "runs/o", "--checkpoint", "initial", "--steps", 7),
        "search.sh": ("why",),
        "install.sh": (),
    }.get(script, ("--help",))
    finished = checkout.run(f"commands/{script}", *arguments, CDPATH=f"{elsewhere}:.")
    assert finished.returncode == 0, finished.stderr
    assert str(elsewhere) not in finished.stdout + finished.stderr
    assert str(elsewhere) not in repr(checkout.calls())
    assert not list(elsewhere.glob("commands/*")), "nothing was made there"


def test_whoever_reads_the_help_may_stop_anywhere():
    unread, written = os.pipe()
    os.close(unread)
    command = ["bash", COMMANDS / "run_ance.sh", "--help"]
    with os.fdopen(written) as pipe:  # and SIGPIPE is ignored, as what Python starts may have it
        finished = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, restore_signals=False)
    assert (finished.returncode, finished.stderr) == (0, "")
