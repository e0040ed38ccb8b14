"""Runs a function of a test module in several processes that form a process group (gloo)."""

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

from utils.runtime import distributed
from utils.runtime.stopping import SIGNALS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def heed(*ignored: int) -> None:
    """Has a process heed all signals that ask it to stop but those `ignored`, whatever the suite was started with.

    A suite in the background ignores SIGINT, one under nohup SIGHUP, and a shell cannot trap what it ignores from its
    start.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


def place_in_group(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment by which a process finds the others, as a launcher sets it."""
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), **group}


def run_each(work: Callable, function: Callable, size: int, arguments: tuple) -> list[Any]:
    """What `work(rank, function, size, port, folder, arguments)` leaves as RANK.pt in the folder, by rank.

    The processes begin with the import of `work`'s own module.
    """
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = [(rank, function, size, port, folder, arguments) for rank in range(size)]
        processes = [context.Process(target=work, args=of_rank) for of_rank in own]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * size, "see what they have printed"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(size)]


def _work(rank: int, function: Callable, size: int, port: int, folder: str, arguments: tuple) -> None:
    os.environ |= place_in_group(rank, size, port)
    torch.set_num_threads(1)
    distributed.set_up(no_cuda=True)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    distributed.leave()


def run_processes(function: Callable, size: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returned in each of `size` processes, by rank: tensors and plain data."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (function, size, free_port(), folder, arguments), nprocs=size)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(size)]
