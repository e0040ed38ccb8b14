"""One run a folder: locks that a process holds until it lets go or ends, however it ends, and that name their holder.

On a disk without locks there are none, which is said.
"""

import fcntl
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.runtime import distributed
from utils.runtime.errors import InputError, disk_errors
from utils.runtime.logs import say
from utils.stores.files import remove_leftovers

PATIENCE_SECONDS = 5  # a restarted run may come before the one that it replaces has gone

_held: dict[Path, int] = {}  # locks of this process, by their paths


def hold_lock(folder: str | Path) -> None:
    """Takes FOLDER/.lock until this process ends; `InputError` naming the holder where another one has it.

    What earlier runs left half written in the folder is then removed.
    """
    path = Path(folder, ".lock").resolve()
    if path in _held:
        return
    handle = _open(path)
    patience = time.monotonic() + PATIENCE_SECONDS
    while not _take(handle, path):
        if time.monotonic() > patience:
            raise InputError(f"{_holder(path)} is at work there; wait for it, or end it", folder)
        time.sleep(0.2)
    _held[path] = handle
    remove_leftovers(folder)


@contextmanager
def taking_turns(folder: str | Path, name: str) -> Iterator[None]:
    """Runs the block in one run at a time: where another one holds FOLDER/.NAME.lock, it is waited for, and said.

    The processes of a run come and go together: all of them must call it.
    """
    path, handle, said = Path(folder, f".{name}.lock"), -1, False

    def take() -> bool:
        nonlocal handle, said
        handle = _open(path) if handle < 0 else handle
        taken = _take(handle, path)
        if not taken and not said:
            say(f"{folder}: waiting for {_holder(path)}")
            said = True
        return taken

    distributed.wait_until(lambda: distributed.on_main(take))
    try:
        yield
        distributed.barrier()
    finally:
        if handle >= 0:
            os.close(handle)


def _open(path: Path) -> int:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _take(handle: int, path: Path) -> bool:
    """Whether the lock is ours now; the file then says so."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        say(f"warning: {path}: this disk knows no locks ({error.strerror}): see that nobody else works there")
    command = shlex.join(sys.argv)[:200]
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}: {command}\n"
    with disk_errors(path):
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(errors="backslashreplace"), 0)
    return True


def _holder(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "another process"
