"""One run a folder: a lock that the process holds until it ends, however it ends, and that says who holds it."""

import fcntl
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from utils.errors import InputError, disk_errors
from utils.logs import say

PATIENCE_SECONDS = 5  # a restarted run may come before the one that it replaces has gone

_held: list[int] = []


def hold_lock(folder: str | Path) -> None:
    """Takes FOLDER/.lock until this process ends; `InputError` naming the holder where another one has it.

    On a disk without locks there is none, which is said.
    """
    path = Path(folder, ".lock")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > patience:
                holder = path.read_text(errors="replace").strip() or "another process"
                raise InputError(f"{holder} is at work there; wait for it, or end it", folder) from None
            time.sleep(0.2)
        except OSError as error:
            say(f"warning: {path}: this disk knows no locks ({error.strerror}): see that nobody else works there")
            break
    command = shlex.join(sys.argv)[:200]
    os.ftruncate(handle, 0)
    os.pwrite(
        handle, f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}: {command}\n".encode(), 0
    )
    _held.append(handle)
