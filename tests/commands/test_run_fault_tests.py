"""commands/run_fault_tests.sh: misuse is told before anything runs. What it runs is the suite itself."""

import pytest

from tests.commands.stub_environment import Checkout


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "settings", "reason"),
    [
        (["--kill", 3], {}, "unknown argument '--kill'"),
        (["--fuzz-seconds=many"], {}, "FUZZ_SECONDS is 'many'; a whole number is needed"),
        ([], {"KILLS": "many"}, "KILLS is 'many'; a whole number is needed"),
        ([], {"FUZZ_SECONDS": "-1"}, "FUZZ_SECONDS is '-1'"),
        ([], {"FUZZ_JOBS": "0"}, "FUZZ_JOBS is '0'; a whole number, at least 1"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, arguments, settings, reason):
    finished = checkout.run("run_fault_tests.sh", *arguments, **settings)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []
