"""What a person sees of a run: one clear line a stage and a progress bar on anything long, from the main process."""

import sys
import time
from collections.abc import Iterable
from functools import cache

from tqdm import tqdm

from utils.runtime import distributed
from utils.runtime.errors import as_called, write

_started = time.monotonic()


def say(message: str) -> None:
    """Prints one line with the minutes since the start, from the main process only.

    Where nobody reads them any more the work goes on without them.
    """
    if distributed.is_main():
        minutes, seconds = divmod(int(time.monotonic() - _started), 60)
        with tqdm.external_write_mode(sys.stdout):
            write(sys.stdout, f"[{minutes:3d}:{seconds:02d}] {as_called(message)}\n")


@cache
def say_once(message: str) -> None:
    """As `say`, for what would be said again and again: each message once a process."""
    say(message)


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    unit: str,
    label: str,
    initial: int = 0,
    delay: float = 0,
) -> tqdm:
    """A progress bar with rate and time left, on stderr of the main process.

    Where stderr is no terminal (a log file), it writes a line every 15 seconds rather than ten a second.
    What is done within `delay` seconds shows none.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        unit=f" {unit}",
        desc=label,
        initial=initial,
        delay=delay,
        disable=not distributed.is_main(),
        mininterval=0.2 if terminal else 15,
        maxinterval=10 if terminal else 60,
        unit_scale=True,
        dynamic_ncols=True,
        leave=not terminal,
    )
