"""Comparing groups' gradients on the simulated device: how often it launches and sends, and what has which kernel."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model import group_gradients
from model.group_gradients import GroupGradients
from tests.cuda.device import SimulatedDevice, simulated_cuda
from tests.cuda.simulated import bounds

BASE, WIDTH = 768, 96  # BERT-base's, and ours: matrices and blocks are smaller alike, so that launches are as many


def watched_step(here: int, n_groups: int) -> GroupGradients:
    """After the backward pass of 3 layers like BERT's, over some tokens of each of the groups 0 … here - 1."""
    layers = [
        nn.ModuleList(
            [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
            + [nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)]
            + [nn.LayerNorm(WIDTH) for _ in range(2)]
        ).to("cuda")
        for _ in range(3)
    ]
    watch = GroupGradients(layers, n_groups)
    own = torch.arange(here).repeat_interleave(torch.arange(here) % 7 + 2)  # two classes of sizes
    with watch.rows(own):
        for query, key, value, out, up, down, first, second in layers:
            rows = torch.randn(len(own), WIDTH, device="cuda", requires_grad=True)
            second(down(up(first(out(query(rows) + key(rows) + value(rows)))))).sum().backward()
    return watch


def collect(monkeypatch, here: int, n_groups: int, processes: int) -> tuple[SimulatedDevice, int]:
    """What one of the processes does in `collect`, each of which has `here` groups, and its number of collectives."""
    collectives = []
    for name in ("all_to_all_single", "all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, lambda *_, name=name: collectives.append(name))
    monkeypatch.setattr(group_gradients, "_size", lambda: processes)
    groups = [(torch.arange(here) + 5 * process) % n_groups for process in range(processes)]
    with simulated_cuda() as device:
        watch = watched_step(here, n_groups)
        watch._block_bytes = group_gradients.GPU_BLOCK_BYTES * WIDTH**2 // BASE**2
        device.clear()
        watch.collect(groups)
    return device, len(collectives)


@pytest.mark.parametrize("here", bounds.COLLECT)
def test_launches_and_collectives_are_few_and_nothing_is_waited_for(monkeypatch, here):
    device, collectives = collect(monkeypatch, here, n_groups=50, processes=8)
    most_launches, most_collectives = bounds.COLLECT[here]
    assert device.launches.total() <= most_launches, device.launches
    assert collectives <= most_collectives
    assert not device.synchronisations


def test_one_process_sends_nothing(monkeypatch):
    assert collect(monkeypatch, 11, n_groups=11, processes=1)[1] == 0


def products_of(groups: Tensor, before: int, device: str) -> Tensor:
    """Of a layer whose output is the columns from `before` on of the matrix that the loss is of; in bfloat16."""
    torch.manual_seed(0)
    inputs, weights = torch.randn(len(groups), 16), torch.randn(len(groups), 40)
    layer, others = nn.Linear(16, 24), torch.randn(len(groups), 16).bfloat16().to(device)
    watch = GroupGradients([layer.to(device)], int(groups.max()) + 1)
    with watch.rows(groups), torch.autocast(device, torch.bfloat16):
        wide = torch.cat([others[:, :before], layer(inputs.to(device)), others[:, before:]], dim=1)
    (wide.float() * weights.to(device)).sum().backward()
    return watch.collect().cpu()


@pytest.mark.parametrize(("groups", "before", "takes"), [(1023, 8, True), (1024, 8, False), (9, 4, False)])
def test_what_the_kernel_for_all_groups_does_not_take_is_padded(groups, before, takes):
    own = torch.arange(groups).repeat_interleave(2)
    expected = products_of(own, before, "cpu")
    with simulated_cuda((9, 0)) as device:
        got = products_of(own, before, "cuda")
    assert device.launches["_grouped_mm"] == takes
    assert float((got - expected).norm() / expected.norm()) < 0.01
