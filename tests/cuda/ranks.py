"""Runs a function of a test module in several processes, each with a simulated GPU of its own, that form a group."""

from tests.cuda import library

library.load()  # before whatever brings torch along

import os
from collections.abc import Callable
from typing import Any

import torch

from tests.cuda.device import simulated_cuda
from tests.processes import place_in_group, run_each
from utils.runtime import distributed


def _work(rank: int, function: Callable, size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ |= place_in_group(rank, size, port)
    torch.set_num_threads(1)
    with simulated_cuda(gpus=size) as simulated:
        own = distributed.set_up()
        torch.save(function(simulated, own, *arguments), f"{folder}/{rank}.pt")
        distributed.leave()


def run_ranks(function: Callable, size: int, *arguments: Any) -> list[Any]:
    """What `function(simulated device, its torch.device, *arguments)` returned in each of `size` processes, by rank.

    At most as many as there are simulated GPUs. What it returns are tensors of the CPU and plain data.
    """
    return run_each(_work, function, size, arguments)
