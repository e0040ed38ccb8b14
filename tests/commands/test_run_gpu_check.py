"""commands/run_gpu_check.sh, the real script, with a stub for Python."""

import shlex

import pytest

from tests.commands.stub_environment import Checkout


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    """Where python3 can run the check, too."""
    checkout = Checkout(tmp_path)
    checkout.add_program("python3", f'exec {shlex.quote(str(checkout.stub / "python"))} "$@"')
    return checkout


def measured(checkout: Checkout) -> list:
    return [call for call in checkout.calls() if call.script == "gpu_check" and "can_run" not in call.flags]


def test_misuse_is_told_before_anything_runs(checkout):
    finished = checkout.run("run_gpu_check.sh", "--passages", "many")
    assert finished.returncode == 2
    assert "PASSAGES is 'many'" in finished.stderr
    assert checkout.calls() == []


def test_a_python_that_sees_a_gpu_is_used_as_it_is(checkout):
    checkout.list_gpus(0, 0)
    finished = checkout.run("run_gpu_check.sh", "--out_dir", "the results", SHAPES="tiny mid", TEXTS=50)
    assert finished.returncode == 0, finished.stderr
    assert not (checkout.stub.parent / "an environment").exists(), "nothing is installed"
    assert "python: " in finished.stdout
    assert "/python3\n" in finished.stdout
    assert "-m pytest tests/gpu " in (checkout.stub / "pytest").read_text()
    (call,) = measured(checkout)
    assert call.flags["out_dir"] == str(checkout.work / "the results")
    assert call.flags["texts"] == "50"
    assert call.values[call.values.index("--shapes") + 1 :][:2] == ["tiny", "mid"]
    assert call.flags["tests"] == str(checkout.work / "the results" / "tests.xml")
    assert checkout.process_of("gpu_check")[1] == "0", "of several GPUs, one is measured"


def test_an_environment_that_is_installed_comes_first(checkout):
    assert checkout.run("install.sh", "dev").returncode == 0
    finished = checkout.run("run_gpu_check.sh")
    assert finished.returncode == 0, finished.stderr
    assert "/an environment/bin/python\n" in finished.stdout


@pytest.mark.parametrize("driver", [False, True])
def test_where_no_python_sees_a_gpu_one_is_installed_if_there_is_a_driver(checkout, driver):
    (checkout.stub / "no-gpu").touch()
    if driver:
        checkout.list_gpus(0)
    finished = checkout.run("run_gpu_check.sh")
    assert finished.returncode == 2
    assert "python3 cannot: error: torch finds no CUDA device" in finished.stderr
    assert ("nvidia-smi lists no GPU either" in finished.stderr) != driver
    assert (checkout.stub.parent / "an environment" / "bin" / "python").exists() == driver
    assert not (checkout.stub / "pytest").exists()


def test_a_test_that_fails_does_not_keep_the_measurements_from_being_made_but_counts(checkout):
    checkout.let_fail("pytest")
    finished = checkout.run("run_gpu_check.sh", "--out_dir", "o")
    assert finished.returncode == 2
    assert "error: failed: tests;" in finished.stderr
    (call,) = measured(checkout)
    assert "tests" not in call.flags, "they left no file"
