"""Measures a whole process from outside, stage by stage: seconds, and the memory that it held.

What a process says tells where it stands: a stage ends with a line of its standard output. Its memory is looked at
50 times a second, so that what lasts less may be missed. It is the host's memory, not a GPU's, and only Linux tells
it (/proc).
"""

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.runtime.errors import InputError

SECONDS_BETWEEN = 0.02


@dataclass
class Stage:
    """Seconds of a stage, and the most memory that the process held in it, in GiB.

    `own_gib` is what it has for itself. `resident_gib` counts the pages of mapped files (libraries, token stores,
    embeddings) as well, which the system takes back without loss when it needs them.
    """

    seconds: float = 0.0
    own_gib: float = 0.0
    resident_gib: float = 0.0


def whole(stages: Sequence[Stage]) -> Stage:
    """All stages as one: the sum of the seconds, the most of the memory."""
    return Stage(
        sum(stage.seconds for stage in stages),
        max(stage.own_gib for stage in stages),
        max(stage.resident_gib for stage in stages),
    )


def watch_python(script: str | Path, flags: Sequence[object], ends: Sequence[str] = ()) -> list[Stage]:
    """Runs a script with this Python: a stage up to each of `ends`, and one from the last of them to the exit.

    `ends` are patterns that are searched for in the lines of standard output, one after another. Raises `InputError`
    with the script's own last words where it fails, or where it ends before it has said them all.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise InputError(f"memory is read from {status}, which only Linux has")
    stages, over = [Stage()], threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        command = [sys.executable, str(script), *map(str, flags)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            sampler = threading.Thread(target=_sample, args=(process.pid, stages, over))
            sampler.start()
            for line in process.stdout:
                if len(stages) <= len(ends) and re.search(ends[len(stages) - 1], line):
                    start = _end_stage(stages[-1], start)
                    stages.append(Stage())
            over.set()
            sampler.join()
        _end_stage(stages[-1], start)
        errors.seek(0)
        if process.returncode:
            raise InputError(f"{Path(script).name} failed: {errors.read()[-500:]}")
    if len(stages) <= len(ends):
        raise InputError(f"{Path(script).name} ended and has not said {ends[len(stages) - 1]!r}")
    return stages


def _end_stage(stage: Stage, start: float) -> float:
    """Notes the seconds since `start` and returns the time."""
    stop = time.perf_counter()
    stage.seconds = stop - start
    return stop


def _sample(pid: int, stages: list[Stage], over: threading.Event) -> None:
    """Notes the memory of a process in its newest stage; it must not be waited for until this is over."""
    while not over.wait(SECONDS_BETWEEN):
        stage, status = stages[-1], Path(f"/proc/{pid}/status").read_text()
        if stage is stages[-1]:
            held = dict(re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB", status, re.MULTILINE))  # empty at its very end
            stage.own_gib = max(stage.own_gib, int(held.get("RssAnon", 0)) / 2**20)
            stage.resident_gib = max(stage.resident_gib, int(held.get("VmRSS", 0)) / 2**20)
