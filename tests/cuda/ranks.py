"""Runs a function of a test module in several processes, each with a simulated GPU of its own, that form a group."""

from tests.cuda import library

library.load()  # before whatever brings torch along

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from tests.cuda.device import simulated_cuda
from tests.processes import free_port
from utils.runtime import distributed


def _work(rank: int, function: Callable, size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with simulated_cuda(gpus=size) as simulated:
        own = distributed.set_up()
        torch.save(function(simulated, own, *arguments), f"{folder}/{rank}.pt")
        distributed.leave()


def run_ranks(function: Callable, size: int, *arguments: Any) -> list[Any]:
    """What `function(simulated device, its torch.device, *arguments)` returned in each of `size` processes, by rank.

    At most as many as there are simulated GPUs. What it returns are tensors of the CPU and plain data.
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = [(rank, function, size, port, folder, arguments) for rank in range(size)]
        processes = [context.Process(target=_work, args=of_rank) for of_rank in own]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * size, "see what they have printed"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(size)]
