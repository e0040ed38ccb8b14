"""How scripts that start others end: at once at a signal, with nothing left behind, and with the reason said once."""

import signal
import time
from pathlib import Path

import pytest

from tests.commands.stub_environment import Checkout


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    for name in ("raw", "initial"):
        (checkout.work / name).mkdir()
    return checkout


ARGUMENTS = {
    "run_comparison.sh": ("--data_dir", "raw", "--checkpoint", "initial", "--out_dir", "o", "--steps", "7"),
    "run_benchmarks.sh": ("--out_dir", "o"),
}


@pytest.mark.parametrize(("script", "busy"), [("run_comparison.sh", "run_ann"), ("run_benchmarks.sh", "training")])
def test_a_script_that_is_stopped_ends_at_once_and_leaves_nothing_behind(checkout, script, busy):
    checkout.let_hang(busy)
    process = checkout.start(script, *ARGUMENTS[script])
    deadline = time.monotonic() + 50
    while not checkout.process_of(busy)[0]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 143
    assert stderr.count("\nstopped") == 1
    assert ("run this again" in stderr) == (script == "run_comparison.sh")
    assert not Path("/proc", checkout.process_of(busy)[0]).exists()


def test_the_reason_of_a_run_that_fails_in_a_comparison_is_said_by_the_run_alone(checkout):
    checkout.let_fail("run_ann")
    failed = checkout.run("run_comparison.sh", *ARGUMENTS["run_comparison.sh"])
    assert failed.returncode == 2
    assert failed.stderr.count("\nin: ") == 1
    assert "in: episode 1 of 1: train" in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--growth_passages", "1e5 x"), "GROWTH_PASSAGES names '1e5'"),
        (("--contenders", "nonsense"), "CONTENDERS names 'nonsense'"),
    ],
)
def test_words_of_a_benchmark_are_checked_before_it_measures(checkout, flags, reason):
    refused = checkout.run("run_benchmarks.sh", *flags)
    assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    assert checkout.calls() == []
