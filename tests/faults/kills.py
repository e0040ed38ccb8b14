"""Kills a script at random moments until it has done its work all the same, by the same command."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.workplace import CLUSTERED, CLUSTERS, Workplace
from utils.files import sha256_of_file

KILLS = int(os.environ.get("ANCE_KILLS", "1"))  # of each script; commands/run_fault_tests.sh asks for more
TRAINED_STEPS = 60


@dataclass(frozen=True)
class Victim:
    """A script at work in a copy of a workplace: how it is started, and the folders that hold what it makes."""

    start: Callable[[Workplace], subprocess.Popen]
    makes: tuple[str, ...]


def _tokenize(place: Workplace) -> subprocess.Popen:
    folder = place.folder
    return place.start(
        "data/msmarco_data.py",
        *("--data_dir", folder / "msmarco", "--out_data_dir", folder / "preprocessed", "--data_type", 1),
        *("--model_type", "rdot_nll_condenser", "--model_name_or_path", folder / "initial"),
        *("--max_seq_length", 48, "--max_query_length", 16),
        launcher="none",
    )


def _mine(place: Workplace) -> subprocess.Popen:
    return place.mine(0, *CLUSTERED, "--group", 1, processes=2, background=True)


def _train(place: Workplace) -> subprocess.Popen:
    steps = ("--max_steps", TRAINED_STEPS, "--save_steps", 3, "--save_total_limit", 2)
    idro = ("--group", 1, "--n_groups", CLUSTERS, "--dro_type", "idro", "--optimizer", "lamb")
    return place.train(0, *steps, *idro, processes=2, background=True)


VICTIMS = {
    "tokenizing": Victim(_tokenize, ("preprocessed",)),
    "mining": Victim(_mine, ("ann_data", "results")),
    "training": Victim(_train, ("models",)),
}


def contents(place: Workplace, victim: Victim) -> dict[str, str]:
    """Path → digest of every file that the script makes, but for logs and locks, which hold times and processes.

    Of checkpoints the last one counts: how many more there are depends on when the run was killed.
    """
    last = f"checkpoint-{TRAINED_STEPS}"
    digests = {}
    for folder in victim.makes:
        for path in sorted((place.folder / folder).rglob("*")):
            name = path.relative_to(place.folder)
            other = any(part.startswith("checkpoint-") and part != last for part in name.parts)
            if path.is_file() and not path.name.endswith(".lock") and "logs" not in name.parts and not other:
                digests[str(name)] = sha256_of_file(path)
    return digests


def clear(place: Workplace, victim: Victim) -> None:
    for folder in victim.makes:
        shutil.rmtree(place.folder / folder, ignore_errors=True)


def undisturbed(place: Workplace, victim: Victim) -> tuple[dict[str, str], float]:
    """What the script makes when nobody disturbs it, and the seconds that it takes."""
    clear(place, victim)
    began = time.monotonic()
    process = victim.start(place)
    output = process.communicate()
    assert process.returncode == 0, output
    return contents(place, victim), time.monotonic() - began


def kill_and_go_on(place: Workplace, victim: Victim, kills: int, seed: int) -> tuple[int, int]:
    """Kills the script, with all its processes, `kills` times; then the number of kills and of runs it finished.

    A run takes `seconds` undisturbed: a kill comes at any moment of the rest of it, so that it hits the work as well
    as the start. What a run has finished must be what an undisturbed one makes, and the next begins with nothing.
    """
    expected, seconds = undisturbed(place, victim)
    clear(place, victim)
    generator = random.Random(seed)
    killed = finished = 0
    while killed < kills or not finished:
        process = victim.start(place)
        try:
            process.communicate(timeout=generator.uniform(0.3, 1.05) * seconds if killed < kills else None)
            assert process.returncode == 0
            finished += 1
            found = contents(place, victim)
            assert found == expected, sorted(set(found.items()) ^ set(expected.items()))
            clear(place, victim)
        except subprocess.TimeoutExpired:
            _kill_all(process)
            killed += 1
    return killed, finished


def _kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a launcher and to what it has started, at once."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    for pid in (process.pid, *map(int, children)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
