"""One process or many: set-up, rank, and the few collectives that the project needs.

Every function works without a process group as well (rank 0 of 1), so that nothing else in the project asks
whether it runs distributed. On CUDA the backend is nccl, else gloo.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from utils.runtime.errors import InputError, explanations, first_line, write

T = TypeVar("T")

# Time for all processes to find each other, and the longest that one may wait for another inside a collective.
RENDEZVOUS_TIMEOUT = timedelta(seconds=90)
COLLECTIVE_TIMEOUT = timedelta(seconds=1800)  # or ANCE_TIMEOUT_SECONDS
ROLL_CALL_SECONDS = 5  # by which the processes that have noticed that one is missing notice it together

BEAT_SECONDS = 1  # between two signs of life
LOOK_SECONDS = 5  # between two looks at the others', or less where their patience is

STORE_IS_GONE = (
    "the process where all meet (the launcher on the first machine, without one rank 0) is dead; the same command "
    "goes on from what was saved last"
)

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


_store: dist.Store | None = None  # that the processes have found each other by
_last_beat = 0.0


def set_up(no_cuda: bool = False, local_rank: int = -1) -> torch.device:
    """Joins the process group that the launcher describes, if any, and returns this process's device.

    `local_rank` is the launcher's argument (torch.distributed.launch passes --local_rank or --local-rank, torchrun
    sets LOCAL_RANK instead). Raises `InputError` with the reason when the processes cannot find each other.
    """
    global COLLECTIVE_TIMEOUT
    local_rank = int(os.environ.get("LOCAL_RANK", max(local_rank, 0)))
    patience = os.environ.get("ANCE_TIMEOUT_SECONDS", f"{COLLECTIVE_TIMEOUT.total_seconds():g}")
    if not re.fullmatch(r"[1-9]\d{0,8}", patience):
        raise InputError(f"ANCE_TIMEOUT_SECONDS is {patience!r}; whole seconds, at least 1, are needed")
    COLLECTIVE_TIMEOUT = timedelta(seconds=int(patience))
    use_cuda = not no_cuda and torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"local rank {local_rank} has no GPU of its own ({torch.cuda.device_count()} on this machine); "
                "start at most as many processes as there are GPUs, or pass --no_cuda"
            )
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        _end_with_launcher()
        _join(use_cuda, device)
    return device


def _end_with_launcher() -> None:
    """Has Linux end this process when the one that started it dies, be it by SIGKILL: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _join(use_cuda: bool, device: torch.device) -> None:
    global _store
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        # torchrun's agent hosts the store itself and says so in this variable.
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=RENDEZVOUS_TIMEOUT,
        )
        store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if use_cuda else None,
        )
        _store = store
        explanations.append(_lost_peers)
    except (dist.DistError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"rank {rank} of {size} could not join the others at {address}: {reason}. Is the port in use by another "
            "program (choose one with --master_port), or did another process of this run not start?"
        ) from None


def _lost_peers(error: Exception) -> str | None:
    """Which processes are dead or hang, where this error says that somebody did not take part in a collective (gloo).

    Whoever gets such an error says so in the store; whoever has not said so a few seconds later is the one.
    """
    lost = re.search(r"[Tt]imed out|Connection (closed|reset) by peer|Broken pipe", str(error))
    if not lost or isinstance(error, OSError):  # that is a file's, or of whoever reads what is printed
        return None
    try:
        _store.set(f"alive/{rank()}", b"1")
        time.sleep(ROLL_CALL_SECONDS)
        lost = [one for one in range(world_size()) if not _store.check([f"alive/{one}"])]
    except dist.DistError:
        return STORE_IS_GONE
    return _say_lost(lost) if lost else None


def _say_lost(lost: list[int]) -> str:
    who = f"rank {', '.join(map(str, lost))} of {world_size()}"
    what = f"{who} is dead or hangs" if len(lost) == 1 else f"of {who} at least one is dead or hangs"
    return (
        f"{what}: it takes no part (others wait at most {COLLECTIVE_TIMEOUT.total_seconds():g} s, "
        "ANCE_TIMEOUT_SECONDS); the same command goes on from what was saved last"
    )


def beat() -> None:
    """A sign of life for those that wait for this process (`wait_until`): in any loop that they may wait for."""
    global _last_beat
    if _store is not None and time.monotonic() - _last_beat >= BEAT_SECONDS:
        _last_beat = time.monotonic()
        _store.set(f"beat/{rank()}", f"{_last_beat}")


class _Watch:
    """Looks at the others' signs of life; `InputError` naming those that have given none for too long."""

    def __init__(self) -> None:
        self._patience = COLLECTIVE_TIMEOUT.total_seconds()
        self._looked = time.monotonic()
        self._seen = {one: (b"", self._looked) for one in range(world_size()) if one != rank()}

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked < min(LOOK_SECONDS, self._patience / 4):
            return
        self._looked = now
        for one, (last, _) in self._seen.items():
            name = f"beat/{one}"
            found = _store.get(name) if _store.check([name]) else b""
            if found != last:
                self._seen[one] = (found, now)
        lost = [one for one, (_, since) in self._seen.items() if now - since > self._patience]
        if lost:
            raise InputError(_say_lost(lost))


def leave(code: int = 0) -> None:
    """Waits for the other processes and ends this one. Without a process group and with code 0, it just returns.

    The interpreter's own clean-up is skipped: when it destroys a gloo group, the destructor holds the interpreter
    lock and waits for gloo's worker thread, which may be waiting for that lock to free a tensor.
    """
    if dist.is_initialized():
        dist.barrier()
        write(sys.stdout)
        write(sys.stderr)
        os._exit(code)
    if code:
        sys.exit(code)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes what is written once."""
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def wait_until(condition: Callable[[], bool], seconds_between: float = 1.0) -> None:
    """Waits for what another process leaves on the disk, for as long as it takes and all give signs of life (`beat`).

    A collective gives up after `COLLECTIVE_TIMEOUT`, and one process may have hours more to do than another. Should
    the other one die, the launcher ends this one; should it hang for that long, `InputError` names it.
    """
    watch = _Watch()
    while not condition():
        try:
            beat()
            watch.look()
        except dist.DistError:
            raise InputError(STORE_IS_GONE) from None
        time.sleep(seconds_between)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sums `tensor` over all processes, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def on_main(function: Callable[[], T]) -> T:
    """Calls `function` on the main process only and hands its result (small, plain data) to every process.

    An `InputError` there is raised in every process, and any other exception as a RuntimeError, so that none is left
    waiting.
    """
    if world_size() == 1:
        return function()
    result, failure = None, None
    if is_main():
        try:
            result = function()
        except Exception as error:
            failure = error
    outcome = [result, isinstance(failure, InputError), failure and f"{failure}"]
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    result, is_input_error, message = outcome
    if message is not None:
        raise InputError(message) if is_input_error else RuntimeError(f"the main process failed: {message}")
    return result


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of every process one after another, on the main process; elsewhere the process's own."""
    if world_size() == 1:
        return rows
    gathered = [None] * world_size() if is_main() else None
    dist.gather_object(rows, gathered)
    return np.concatenate(gathered) if is_main() else rows
