"""Runs a function of a test module in several processes, each with a GPU of its own, that form a group by nccl."""

import os
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu.conftest import SIMULATED
from tests.processes import place_in_group, run_each
from utils.runtime import distributed


def _work(rank: int, function: Callable, size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ |= place_in_group(rank, size, port)
    torch.save(function(distributed.set_up(), *arguments), f"{folder}/{rank}.pt")
    distributed.leave()


def _on_simulated_gpu(simulated: Any, device: torch.device, function: Callable, *arguments: Any) -> Any:
    return function(device, *arguments)


def run_ranks(function: Callable, size: int, *arguments: Any) -> list[Any]:
    """What `function(its torch.device, *arguments)` returned in each of `size` processes, by rank.

    What it returns are tensors of the CPU and plain data.
    """
    if SIMULATED:
        from tests.cuda import ranks

        return ranks.run_ranks(_on_simulated_gpu, size, function, *arguments)
    return run_each(_work, function, size, arguments)
