"""Signals to training, and processes that die or hang: by the real script."""

import os
import pty
import re
import shutil
import signal
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.faults.kills import VICTIMS, clear, contents
from tests.test_pipeline import children
from tests.workplace import CLUSTERED, CLUSTERS, Workplace, wait_for
from utils.runtime.stopping import EXIT_CODE
from utils.stores.checkpoint import newest_checkpoint, read_trainer_state

pytestmark = pytest.mark.pipeline

STEPS = 150
FLAGS = ("--max_steps", STEPS, "--group", 1, "--n_groups", CLUSTERS, "--optimizer", "lamb")


def start(place: Workplace, *flags, **settings):
    """Training that is at work: its first checkpoint is there."""
    process = place.train(0, *FLAGS, *flags, "--save_steps", 10, background=True, **settings)
    wait_for((place.checkpoint(10) / "config.json").exists, process)
    return process


@pytest.fixture(scope="module")
def undisturbed(mined, tmp_path_factory) -> dict[int, dict[str, np.ndarray]]:
    """The weights that one process ends with, and two."""
    weights = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp("undisturbed") / "work"
        shutil.copytree(mined.folder, folder)
        place = Workplace(folder)
        place.train(0, *FLAGS, processes=processes)
        weights[processes] = place.weights(STEPS)
    return weights


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_signal_training_saves_after_the_step_and_the_same_command_ends_with_the_same_weights(
    place, undisturbed, number
):
    process = start(place, launcher="none")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE, stderr
    step = int(re.search(rf"stopped by {signal.Signals(number).name} after step (\d+);", stdout)[1])
    newest = newest_checkpoint(place.folder / "models")
    assert newest.name == f"checkpoint-{step}"
    assert 10 <= step < STEPS
    place.train(0, *FLAGS, launcher="none")
    assert same(place.weights(STEPS), undisturbed[1])


@pytest.mark.parametrize("ignored", [False, True])
def test_where_the_terminal_is_closed_training_saves_or_under_nohup_goes_on(place, undisturbed, ignored):
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    launcher = ["--standalone", "--nproc_per_node", 2]
    if ignored:
        launcher = ["--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT", *launcher]  # as run_ance.sh has it
    ignoring = (signal.SIGHUP,) * ignored
    process = place.train(0, *FLAGS, launcher=tuple(launcher), background=True, terminal=its_end, ignoring=ignoring)
    os.close(its_end)
    shown = b""
    while not re.search(rb"[1-9][\d.]*/%d" % STEPS, shown):
        shown += os.read(terminal, 1024)
    os.close(terminal)
    process.wait(timeout=60)
    assert (process.returncode == 0) == ignored
    step = read_trainer_state(newest_checkpoint(place.folder / "models")).global_step
    assert step == STEPS if ignored else 1 <= step < STEPS
    place.train(0, *FLAGS, processes=2)
    assert same(place.weights(STEPS), undisturbed[2])


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(place, undisturbed):
    launcher = start(place, processes=2, launcher="torchrun")
    os.kill(children(launcher, "run_ann.py")[1], signal.SIGTERM)
    stdout, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "after step" in stdout, stderr
    step = read_trainer_state(newest_checkpoint(place.folder / "models")).global_step
    assert f"after step {step};" in stdout
    place.train(0, *FLAGS, processes=2)
    assert same(place.weights(STEPS), undisturbed[2])


def test_a_launcher_that_may_restart_goes_on_by_itself_after_a_kill(place, undisturbed):
    launcher = start(place, launcher=("--standalone", "--nproc_per_node", 2, "--max_restarts", 2))
    os.kill(children(launcher, "run_ann.py")[0], signal.SIGKILL)
    stdout, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, stderr
    assert re.search(rf"steps [1-9]\d* to {STEPS}", stdout), "a restart went on from a checkpoint"
    assert same(place.weights(STEPS), undisturbed[2])


def test_a_signal_to_mining_ends_it_with_one_line_and_the_same_command_ends_with_the_same_files(place):
    mining = VICTIMS["mining"]
    clear(place, mining)
    place.mine(0, *CLUSTERED, "--group", 1, launcher="none")
    expected = contents(place, mining)
    clear(place, mining)
    miner = place.mine(0, *CLUSTERED, "--group", 1, launcher="none", background=True)
    wait_for((place.folder / "ann_data" / "embeddings-0").exists, miner)
    miner.send_signal(signal.SIGTERM)
    _, stderr = miner.communicate(timeout=60)
    assert miner.returncode == EXIT_CODE, stderr
    assert "stopped by SIGTERM: the same command goes on from what is done" in stderr
    assert "Traceback" not in stderr
    place.mine(0, *CLUSTERED, "--group", 1, launcher="none")
    assert contents(place, mining) == expected


@pytest.mark.parametrize(
    ("script", "number"),
    [("run_ann.py", signal.SIGSTOP), ("run_ann.py", signal.SIGKILL), ("run_ann_data_gen.py", signal.SIGSTOP)],
)
def test_a_process_that_hangs_or_dies_is_named_and_ends_the_others(place, monkeypatch, script, number):
    monkeypatch.setenv("ANCE_TIMEOUT_SECONDS", "10")
    if script == "run_ann.py":
        launcher = start(place, processes=2, launcher="torchrun")
    else:
        clear(place, VICTIMS["mining"])
        launcher = place.mine(0, *CLUSTERED, processes=2, launcher="torchrun", background=True)
        wait_for((place.folder / "ann_data" / "embeddings-0").exists, launcher)
    stopped = children(launcher, script)[1]
    began = time.monotonic()
    os.kill(stopped, number)
    _, stderr = launcher.communicate(timeout=100)
    assert time.monotonic() - began < 90  # of which torchrun gives a process that hangs 30 to end by itself
    assert launcher.returncode != 0
    assert "rank 1 of 2 is dead or hangs" in stderr
    assert not Path(f"/proc/{stopped}").exists()


def test_steps_that_are_not_finite_are_counted_and_after_some_in_a_row_training_names_the_last_good_checkpoint(place):
    place.train(0, "--max_steps", 2, "--save_steps", 2, launcher="none")
    weights = place.weights(2)
    broken = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    save_file(broken, place.folder / "initial" / "model.safetensors")
    flags = ("--max_steps", 20, "--training_dir", place.folder / "other", "--save_steps", 2, "--max_skipped_steps", 5)
    failed = place.train(0, *flags, "--output_dir", place.folder / "other", launcher="none", fails=True)
    assert failed.returncode == 2
    assert failed.stdout.count("is skipped, its gradient is not finite") == 5
    assert "5 steps in a row had a gradient that is not finite" in failed.stderr
    assert f"the last good checkpoint: {place.folder / 'initial'}" in failed.stderr
    state = read_trainer_state(place.folder / "other" / "checkpoint-4")
    assert (state.skipped_steps, state.skipped_in_a_row) == (4, 4)
