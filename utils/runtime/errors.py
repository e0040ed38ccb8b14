"""Errors for people: what was found, where, and what to do about it.

`InputError` is the one exception that the project raises for something a user can mend. An entry script runs
its `main` through `run`, which turns it into one line on stderr and exit code 2, and a signal that asks it to stop
into another and exit code 75; any other exception is our own mistake and keeps its traceback.
"""

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from utils.runtime.stopping import EXIT_CODE, Stopped, StopRequest

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space, and run this again",
    errno.EDQUOT: "the quota of this disk is used up; free some space, and run this again",
    errno.EFBIG: "a limit on file sizes forbids it; raise it (ulimit -f), and run this again",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "writing there is not permitted; choose another folder, or change its permissions",
    errno.EPERM: "writing there is not permitted; choose another folder, or change its permissions",
    errno.EIO: "the disk reports an error; what is written there may be lost, so choose another one",
}


def as_called(message: str) -> str:
    """The message with flags called as the user's own script calls them.

    A bash script that passes its settings on under other names says so in ANCE_FLAGS: NAME=TEXT, with blanks between,
    has TEXT put in the place of --NAME.
    """
    names = dict(pair.split("=", 1) for pair in os.environ.get("ANCE_FLAGS", "").split())
    return re.sub(r"(?<![\w-])--(\w+)(?![\w-])", lambda flag: names.get(flag[1], flag[0]), message)


class InputError(Exception):
    """Something the user can mend: names the file (and line), what was found and the cure."""

    def __init__(self, message: str, path: str | os.PathLike | None = None, line: int | None = None) -> None:
        if path is not None:
            place = f"{Path(path)}:{line}" if line is not None else f"{Path(path)}"
            message = f"{place}: {message}"
        super().__init__(message)


def first_line(error: Exception) -> str:
    """What another library's exception says first; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# What else may turn an exception into a message for people; None where it has nothing to say about it.
explanations: list[Callable[[Exception], str | None]] = []


@contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """What the block cannot write to the disk becomes an `InputError` that names `path` and the cure.

    Libraries hide the system's error number in their own message (safetensors), or tell none (numpy and torch).
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number in DISK_ERRORS:
            raise InputError(f"cannot be written: {DISK_ERRORS[number]}", path) from None
        if re.search(r"requested and \d+ written|inline_container\.cc", str(error)):
            raise InputError("cannot be written: is the disk full, or file size limited (ulimit -f)?", path) from None
        raise


def run(main: Callable[[], None]) -> None:
    """Runs an entry script: an `InputError` becomes one clear line and exit code 2, a signal exit code 75.

    In a run of several processes this one ends at once (see `utils.runtime.distributed.leave`), and the launcher ends
    the others. An error's line is also added to the file that ANCE_ERRORS names, if it does: launchers say much after
    it. torchrun shows it as the root cause.
    """
    _print_any_text()
    StopRequest(raises=True)
    try:
        main()
    except Stopped as stopped:
        _leave(f"stopped by {stopped}", ": the same command goes on from what is done", EXIT_CODE)
    except InputError as error:
        _leave("error", f": {error}", 2)
    except Exception as error:
        StopRequest()  # a launcher ends those whose peer has died: the reason is told first
        message = next(filter(None, (explain(error) for explain in explanations)), None)
        if message is None:
            if "RANK" not in os.environ:
                raise
            write(sys.stderr, traceback.format_exc())
            os._exit(1)
        _leave("error", f": {message}", 2)


def _print_any_text() -> None:
    """Has standard output and error print what their encoding lacks, an accent or a damaged name, as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(what: str, message: str, code: int) -> None:
    StopRequest()
    rank = os.environ.get("RANK")
    where = "" if rank is None else f" (rank {rank})"
    line = as_called(f"{what}{where}{message}\n")
    write(sys.stdout)
    write(sys.stderr, line)
    if code == 2 and (errors := os.environ.get("ANCE_ERRORS")):
        with suppress(OSError), Path(errors).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # from which torchrun shows what it calls the root cause
        told = {"message": line.strip(), "extraInfo": {"py_callstack": line.strip(), "timestamp": int(time.time())}}
        with suppress(OSError), Path(path).open("w", encoding="utf-8") as file:
            json.dump({"message": told}, file)
    if rank is not None:
        os._exit(code)
    sys.exit(code)


def write(stream: TextIO, text: str = "") -> None:
    """Writes to standard output or error, and flushes it.

    Where that fails (a closed terminal, a pipe whose reader has gone), this and all that follows goes nowhere.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
