"""A stub checkout, and a run of its run_ance.sh or run_ance_async.sh."""

import pytest

from tests.commands.run_ance.running import Run
from tests.commands.stub_environment import Checkout


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def run(checkout) -> Run:
    return Run(checkout)


@pytest.fixture
def side_by_side(run) -> Run:
    run.script = "run_ance_async.sh"
    return run
