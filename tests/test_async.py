"""Mining and training side by side, by the real scripts: neither waits for the other, and either may be killed."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from drivers import run_ann
from tests.workplace import CLUSTERED, CLUSTERS, ROOT, Workplace, wait_for
from utils.runtime.errors import InputError
from utils.runtime.stopping import EXIT_CODE
from utils.stores.checkpoint import TrainerState, checkpoint_step, newest_checkpoint, read_trainer_state
from utils.stores.episode import mined_file, newest_episode, read_episode, write_result
from utils.stores.files import sha256_of_file
from utils.stores.token_store import TokenStore

GROUPS = ("--group", 1, "--n_groups", CLUSTERS)
FOLDERS = {"data_dir": "d", "ann_dir": "a", "output_dir": "o"}
FOLLOWING = FOLDERS | {"round": -1, "total_training_steps": 9, "save_steps": 3}


def newest_step(place: Workplace, models: str = "models") -> int:
    newest = newest_checkpoint(place.folder / models)
    return checkpoint_step(newest, newest.parent) if newest else 0


def newest_round(place: Workplace, models: str = "models") -> int:
    """The episode that training stood in at its newest checkpoint, -1 where there is none."""
    newest = newest_checkpoint(place.folder / models)
    return read_trainer_state(newest).round if newest else -1


@pytest.mark.pipeline
def test_moving_on_to_a_newer_episode_trains_as_two_rounds_in_turn(place):
    lines = mined_file(place.folder / "ann_data", 0).read_text().splitlines(keepends=True)
    mined_file(place.folder / "ann_data", 1).write_text("".join(reversed(lines)))
    result = place.result(0) | {"mined_sha256": sha256_of_file(mined_file(place.folder / "ann_data", 1))}
    write_result(place.folder / "results", 1, result)
    # The rate stays as it is: rounds warm up and decay each, a run beside a miner does once.
    schedule = (*GROUPS, "--num_training_steps", 10**18, "--save_steps", 2)
    for number, steps in ((0, 3), (1, 2)):
        lengths = ("--max_steps", steps, "--total_training_steps", 10**18)
        place.train(number, *schedule, *lengths, launcher="none")
    in_turn = place.weights(5)
    for step in (3, 5):
        shutil.rmtree(place.checkpoint(step))
    place.train(-1, *schedule, "--logging_steps", 3, "--total_training_steps", 5, launcher="none")
    state = read_trainer_state(place.checkpoint(5))
    assert (state.round, state.episode_step, state.position) == (1, 2, 2 * 8)
    followed = place.weights(5)
    assert all(np.array_equal(followed[name], value) for name, value in in_turn.items())


@pytest.mark.pipeline
def test_miner_and_trainer_survive_each_others_death(place):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    ann_data, results = place.folder / "ann_data", place.folder / "results"

    def embedded() -> set[int]:
        return {int(folder.name.split("-")[1]) for folder in ann_data.glob("embeddings-*")}

    def start_miner() -> subprocess.Popen:
        return place.mine(-1, *CLUSTERED, background=True, launcher="none")

    follow = (*GROUPS, "--save_steps", 25)
    endless = ("--total_training_steps", 10**6)
    trainer = place.train(-1, *follow, *endless, background=True, launcher="none")
    miner = start_miner()
    try:
        # The trainer waits for the first episode; the miner is killed as soon as it is at a later one.
        wait_for(lambda: max(embedded(), default=0) > 0, miner, trainer)
        miner.kill()
        miner.communicate()
        ready, step = newest_episode(results), newest_step(place)
        wait_for(lambda: newest_step(place) > step, trainer)

        miner = start_miner()
        wait_for(lambda: newest_round(place) > ready, miner, trainer)
        trainer.kill()
        trainer.communicate()
        stood = read_trainer_state(newest_checkpoint(place.folder / "models"))
        wait_for(lambda: newest_episode(results) > stood.round, miner)
        last = stood.global_step + 30
        finished = place.train(-1, *follow, "--total_training_steps", last, launcher="none")
        assert f"steps {stood.global_step} to {last}" in finished.stdout
        assert newest_step(place) == last
        assert newest_round(place) > stood.round > ready

        # The miner comes to the last checkpoint, and keeps the embeddings of no other but the initial one.
        wait_for(lambda: place.result(newest_episode(results))["step"] == last and embedded() == {0, last}, miner)
        miner.terminate()
        miner.communicate()
        assert miner.returncode == EXIT_CODE
    finally:
        for process in (miner, trainer):
            process.kill()
            process.communicate()
    mined = [place.result(number) for number in range(newest_episode(results) + 1)]
    steps = [result["step"] for result in mined]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    rows = [len(TokenStore(place.folder / "preprocessed" / name)) for name in ("train-query", "passages")]
    for number, result in enumerate(mined):
        assert read_episode(mined_file(ann_data, number), *rows, CLUSTERS).triplets == result["triplets"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The real scripts, with an environment that is there already."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "commands", root / "commands")
    for name in ("data", "drivers", "evaluate", "model", "utils"):
        (root / name).symlink_to(ROOT / name)
    (root / "commands" / "install.sh").write_text("exit\n")
    python = root / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return root


def read_words(command_line: Path) -> list[bytes]:
    """The words of a process's command line; none where it has ended."""
    with suppress(OSError):
        return command_line.read_bytes().split(b"\0")
    return []


@pytest.mark.pipeline
def test_the_script_stops_when_its_miners_launcher_is_killed_and_goes_on_by_the_same_command(place, checkout):
    settings = {
        "DATA_DIR": place.folder / "msmarco",
        "OUT_DIR": place.folder,
        "CHECKPOINT": place.folder / "initial",
        "MAX_SEQ_LENGTH": 48,
        "MAX_QUERY_LENGTH": 16,
        "TOPK": 40,
        "NEGATIVES": 7,
        "CLUSTERS": CLUSTERS,
        "STEPS": 50,
        "SAVE_STEPS": 25,
        "BATCH_SIZE": 8,
        "ACCUMULATION": 1,
        "LEARNING_RATE": 1e-3,
        "WARMUP_STEPS": 1,
        "OPTIMIZER": "adamW",
        "MIXED_PRECISION": 0,
        "EVAL_BATCH_SIZE": 64,
        "ANCE_VENV": checkout / "environment",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": 1,
    }

    def start(episodes: int) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", checkout / "commands" / "run_ance_async.sh", "--episodes", str(episodes)],
            env=os.environ | {name: str(value) for name, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def miners(*of: bytes) -> list[int]:
        """The processes of this run that mine, a launcher and what it started: those with these words."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if {b"--end_output_num", os.fsencode(place.folder / "ann_data"), *of} <= set(read_words(path))
        ]

    script = start(10**4)
    try:
        wait_for(lambda: newest_round(place, "saved_models") > 0, script)
        (launcher,) = miners(b"torch.distributed.run")
        os.kill(launcher, signal.SIGKILL)
        _, stderr = script.communicate(timeout=60)
    finally:
        script.terminate()
        script.communicate()
    assert script.returncode == 2
    assert "the miner has ended too early" in stderr.splitlines()[-1]
    wait_for(lambda: not miners())

    episodes = newest_step(place, "saved_models") // 50 + 2
    again = start(episodes)
    stdout, stderr = again.communicate()
    assert again.returncode == 0, stderr
    assert f"after {50 * episodes} steps" in stdout
    assert newest_step(place, "saved_models") == 50 * episodes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": -2}, "--round is -2"),
        ({"total_training_steps": 0}, "--round -1 wants --total_training_steps"),
        ({"save_steps": 0}, "nothing new to mine with"),
        ({"max_steps": 5}, "no --max_steps"),
    ],
)
def test_training_beside_a_miner_must_know_its_own_length(changes, reason):
    assert run_ann.Arguments(**FOLLOWING).follow
    with pytest.raises(InputError, match=reason):
        run_ann.Arguments(**FOLLOWING | changes)


def test_training_beside_a_miner_has_ended_after_its_steps_in_whatever_round():
    args = run_ann.Arguments(**FOLLOWING)
    states = [TrainerState(round=4, global_step=step, position=77, ended=True) for step in (8, 9, 10)]
    assert [run_ann.is_trained(args, state) for state in states] == [False, True, True]
    assert not run_ann.is_trained(args, TrainerState(round=4, global_step=10)), "mining would refuse it"


@pytest.mark.parametrize(
    ("round", "given", "expected"),
    [
        (0, {}, (60_000, 300_000)),
        (2, {"num_training_steps": 7}, (7, 300_000)),
        (2, {"total_training_steps": 9}, (60_000, 9)),
        (-1, {"total_training_steps": 9}, (9, 9)),
        (-1, {"total_training_steps": 9, "num_training_steps": 7}, (7, 9)),
    ],
)
def test_the_schedule_of_a_round_is_the_published_one_and_beside_a_miner_that_of_the_run(round, given, expected):
    for single_warmup in (False, True):
        args = run_ann.Arguments(**FOLDERS, round=round, save_steps=3, single_warmup=single_warmup, **given)
        assert (args.num_training_steps, args.total_training_steps) == expected
