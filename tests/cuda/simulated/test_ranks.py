"""Two processes with a simulated GPU each give what one process gives on the CPU with the whole batch."""

from dataclasses import replace

import pytest
import torch

from tests.cuda.device import SimulatedDevice
from tests.cuda.ranks import run_ranks
from tests.cuda.simulated import bounds
from tests.cuda.simulated.steps import CPU, OF_RANKS, Setting, assert_alike, batches_of, make_step, trained


def all_trained(simulated: SimulatedDevice, device: torch.device) -> list:
    assert device.index == torch.cuda.current_device() == torch.distributed.get_rank()
    trained_by = [trained(replace(one, batch_size=one.batch_size // 2), device) for one in OF_RANKS]
    step, (first, second, third) = make_step(Setting(), device), batches_of(Setting(steps=3, batch_size=6), device)
    step(first.batches, 1e-2, clusters_of=first.clusters)
    step(second.batches, 1e-2, clusters_of=second.clusters)  # DistributedDataParallel agrees on its buckets
    simulated.clear()
    step(third.batches, 1e-2, clusters_of=third.clusters)
    return [trained_by, simulated.synchronisations, dict(simulated.collectives)]


@pytest.fixture(scope="module")
def ranks() -> list:
    return run_ranks(all_trained, 2)


@pytest.mark.parametrize("setting", OF_RANKS, ids=str)
def test_two_ranks_give_what_one_process_gives_with_the_whole_batch(ranks, setting):
    expected = trained(setting, CPU)
    for by_setting, _, _ in ranks:
        assert_alike(by_setting[OF_RANKS.index(setting)], expected, 0.1 if setting.dtype == torch.bfloat16 else 1e-3)


def test_a_step_waits_and_sends_no_more_than_so_often(ranks):
    for _, waits, collectives in ranks:
        assert len(waits) <= bounds.WAITS, waits
        assert sum(collectives.values()) <= bounds.COLLECTIVES_OF_TWO, collectives
