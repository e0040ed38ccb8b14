"""A run of commands/run_ance.sh, the real script, with a stub for Python, and what its tests read from it."""

import subprocess
import time
from pathlib import Path

from tests.commands.stub_environment import Call, Checkout

READING = ["find_reading", "import_data"]  # each time: the checkpoint and the data may be others
STORES = ["msmarco_data", "beir_data"]  # they see for themselves whether the files have changed
CHOICE = ["choose_settings"]  # by what they made
EPISODES = ["run_ann_data_gen", "run_ann"] * 2
TABLES, CARD, REPORT = ["results_table", "compare_runs"], ["model_card"], ["report"]
FILTERS = {"SKIP_RANKS": "3", "MAX_RELATIVE_SCORE": "0.95", "MIN_MARGIN": "0.5"}
# Prompts of queries and of passages, as they are given: blanks at the ends, dashes, line breaks, what a shell minds.
PROMPTS = [
    ("query: ", ""),
    (" -x ", "--seed"),
    (r"Instruct: find\nQuery: ", "grün\tblau"),
    ("$(touch ran) `touch ran` $HOME ${x} *", 'it\'s "so" \\ \\t %s ${OUT_DIR} a=b!'),
]


class Run:
    """A collection, a zero-shot collection and a checkpoint, and the script that runs on them."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.out = checkout, checkout.work / "out of all"
        for name in ("raw", "other raw", "beir/sci fact", "initial"):
            (checkout.work / name).mkdir(parents=True)

        self.script = "run_ance.sh"
        self.settings = {
            "DATA_DIR": "raw",
            "OUT_DIR": "out of all",
            "CHECKPOINT": "initial",
            "EPISODES": 2,
            "ZERO_SHOT_DIRS": "beir/sci fact",
        }

    def __call__(self, *flags: object, **settings: object) -> subprocess.CompletedProcess:
        return self.checkout.run(self.script, *flags, **self.settings | settings)

    def calls(self) -> list[Call]:
        return self.checkout.calls()


def names(calls: list[Call]) -> list[str]:
    return [call.script for call in calls]


def only(calls: list[Call], script: str) -> list[dict[str, str]]:
    return [call.flags for call in calls if call.script == script]


def write_groups(run: Run, name: str = "groups.tsv", content: str = "1\tlaw\n") -> Path:
    path = run.checkout.work / name
    path.write_text(content)
    return path


def in_use(calls: list[Call]) -> dict[str, bool]:
    """Of each script that tokenizes, whether its stores are in use."""
    return {call.script: "in_use" in call.flags for call in calls if call.script in STORES}


def readings(calls: list[Call]) -> list[tuple[str, ...]]:
    """How each script that reads a checkpoint is told to, but for the one that finds that out."""
    flags = "model_type", "pooling", "normalize", "scale", "query_prompt", "passage_prompt", "lowercase"
    told = [call.flags for call in calls if "model_type" in call.flags and call.script not in READING + CHOICE]
    return [tuple(flag.get(name, "none") for name in flags) for flag in told]


def start_and_hang(run: Run, miner: str, *others: str) -> subprocess.Popen:
    """Starts the run with a miner that hangs, and returns when it and other scripts are at work."""
    run.checkout.let_hang(miner)
    process = run.checkout.start(run.script, **run.settings)
    patience = time.monotonic() + 60
    while any(is_gone(run, script) for script in (miner, *others)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < patience
        time.sleep(0.02)
    return process


def is_gone(run: Run, script: str) -> bool:
    pid, _ = run.checkout.process_of(script)
    return not pid or not Path("/proc", pid).exists()
