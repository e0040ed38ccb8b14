"""Runs a function of a test module in several processes, each with a GPU of its own, that form a group by nccl."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu.conftest import SIMULATED
from tests.processes import free_port
from utils.runtime import distributed


def _work(rank: int, function: Callable, size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
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
