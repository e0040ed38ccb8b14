"""Several machines: an agent of torchrun on each, and one folder that all see. Here the machines are one."""

import shutil

import numpy as np
import pytest

from tests.processes import free_port
from tests.workplace import CLUSTERED, IDRO, STEPS, Workplace

pytestmark = pytest.mark.pipeline


def on_two_machines(start, *flags) -> None:
    """Runs a script of a workplace with two agents of one process each, which meet at a port."""
    meeting = "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "tests"
    launcher = "--nnodes", 2, "--nproc_per_node", 1, *meeting
    agents = [start(0, *flags, background=True, launcher=launcher) for _ in range(2)]
    ended = [agent.communicate() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], ended


def test_two_machines_mine_and_train_as_one_with_two_processes(place, mined, tmp_path):
    shutil.copytree(mined.folder, tmp_path / "one machine")
    one = Workplace(tmp_path / "one machine")
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    on_two_machines(place.mine, *CLUSTERED)
    name = "ann_data/ann_training_data_0"
    assert (place.folder / name).read_text() == (one.folder / name).read_text()
    assert place.result(0)["ndcg"] == one.result(0)["ndcg"]

    on_two_machines(place.train, *IDRO)
    one.train(0, *IDRO, processes=2)
    weights, expected = place.weights(STEPS), one.weights(STEPS)
    assert all(np.array_equal(weights[name], value) for name, value in expected.items())
