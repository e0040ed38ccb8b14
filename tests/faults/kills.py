"""Kills a script at random moments until it has done its work all the same, by the same command."""

import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.workplace import CLUSTERED, CLUSTERS, ROOT, Workplace, wait_for
from utils.stores.files import sha256_of_file

TRAINED_STEPS = 60
RUN_STEPS = 20  # an episode of commands/run_ance.sh
MARK = "ANCE_VICTIM"  # environment variable by which a victim's processes are found
# What holds times and processes, or is drawn from what does.
LEFT_ASIDE = ("logs", "report.html", "pictures", "README.md")


@dataclass(frozen=True)
class Victim:
    """A script at work in a copy of a workplace: how it is started, and the folders that hold what it makes.

    Of checkpoints those of `steps` count: how many more there are depends on when the run was killed. Of a script
    with `parts`, several processes, every third kill is one of a single one of them, whose end the others have to
    notice; and where it `leaves` with an exit code of its own at SIGTERM, every third is one.
    """

    start: Callable[[Workplace], subprocess.Popen]
    makes: tuple[str, ...]
    steps: tuple[int, ...] = ()
    parts: bool = True
    leaves: int | None = None


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


def _run(place: Workplace) -> subprocess.Popen:
    """commands/run_ance.sh: two episodes, from the raw texts to the report."""
    folder, command = place.folder, ["bash", ROOT / "commands" / "run_ance.sh"]
    command += ["--data_dir", folder / "msmarco", "--checkpoint", folder / "initial", "--out_dir", folder / "run"]
    command += ["--max_seq_length", 48, "--max_query_length", 16, "--topk", 40, "--negatives", 7]
    command += ["--clusters", CLUSTERS, "--episodes", 2, "--steps", RUN_STEPS, "--batch_size", 8, "--bm25", 1]
    command += ["--learning_rate", 1e-3, "--warmup_steps", 2, "--processes", 2]
    command += ["--save_steps", 4, "--save_total_limit", 2]
    return place.popen(command, ANCE_VENV=sys.prefix)


VICTIMS = {
    "tokenizing": Victim(_tokenize, ("preprocessed",), parts=False),
    "mining": Victim(_mine, ("ann_data", "results")),
    "training": Victim(_train, ("models",), (TRAINED_STEPS,)),
}
WHOLE_RUN = Victim(_run, ("run",), (RUN_STEPS, 2 * RUN_STEPS), leaves=143)


def contents(place: Workplace, victim: Victim) -> dict[str, str]:
    """Path → digest of every file that the script makes, but for locks and what is `LEFT_ASIDE`."""

    def is_left_aside(part: str) -> bool:
        step = re.fullmatch(r"checkpoint-(\d+)", part)
        return part in LEFT_ASIDE or part.endswith(".lock") or (step is not None and int(step[1]) not in victim.steps)

    digests = {}
    for folder in victim.makes:
        for path in sorted((place.folder / folder).rglob("*")):
            name = path.relative_to(place.folder)
            if path.is_file() and not any(map(is_left_aside, name.parts)):
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


def kill_and_go_on(
    place: Workplace, victim: Victim, expected: dict[str, str], seconds: float, kills: int, seed: int
) -> tuple[int, int]:
    """Kills the script, mostly with all its processes, `kills` times; then the number of kills and of finished runs.

    A run takes `seconds` undisturbed, and a kill comes at any moment of that. What a run has finished must be what is
    expected, and the next begins with nothing.
    """
    clear(place, victim)
    generator = random.Random(seed)
    killed = finished = 0
    while killed < kills or not finished:
        os.environ[MARK] = secrets.token_hex(8)
        process = victim.start(place)
        try:
            patience = generator.uniform(0.02, 1) * seconds
            output = process.communicate(timeout=patience if killed < kills else None)
            assert process.returncode == 0, output
            finished += 1
            found = contents(place, victim)
            assert found == expected, sorted(set(found.items()) ^ set(expected.items()))
            clear(place, victim)
        except subprocess.TimeoutExpired:
            if victim.leaves and killed % 3 == 1:
                process.terminate()
                output = process.communicate(timeout=120)
                assert process.returncode == victim.leaves, output
            elif victim.parts and killed % 3 == 2:
                with suppress(ProcessLookupError):
                    os.kill(generator.choice(_processes(os.environ[MARK]) or [process.pid]), signal.SIGKILL)
                process.communicate(timeout=300)
            else:
                _kill_all(process)
            wait_for(lambda: not _processes(os.environ[MARK]), seconds=30)
            killed += 1
    return killed, finished


def _processes(mark: str) -> list[int]:
    """Every process that was started, by whomever, with this mark in its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a script and to all that it has started, at once; none is left afterwards."""
    while left := [pid for pid in _processes(os.environ[MARK]) if pid != process.pid or process.poll() is None]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.communicate()
