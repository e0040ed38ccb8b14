"""Errors for people: what was found, where, and what to do about it.

`InputError` is the one exception that the project raises for something a user can mend. An entry script runs
its `main` through `run`, which turns it into one line on stderr and exit code 2; any other exception is our own
mistake and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path


class InputError(Exception):
    """Something the user can mend: names the file (and line), what was found and the cure."""

    def __init__(self, message: str, path: str | os.PathLike | None = None, line: int | None = None) -> None:
        if path is not None:
            place = f"{Path(path)}:{line}" if line is not None else f"{Path(path)}"
            message = f"{place}: {message}"
        super().__init__(message)


def run(main: Callable[[], None]) -> None:
    """Runs an entry script: an `InputError` becomes one clear line and exit code 2.

    In a run of several processes this one ends at once (see `utils.distributed.leave`), and the launcher ends the
    others.
    """
    try:
        main()
    except InputError as error:
        rank = os.environ.get("RANK")
        where = "" if rank is None else f" (rank {rank})"
        sys.stdout.flush()
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        if rank is not None:
            os._exit(2)
        sys.exit(2)
