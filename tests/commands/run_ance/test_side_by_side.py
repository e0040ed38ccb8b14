"""run_ance_async.sh: the miner and training at work at once."""

import pytest

from tests.commands.run_ance.running import (
    CHOICE,
    READING,
    REPORT,
    STORES,
    TABLES,
    is_gone,
    names,
    only,
    start_and_hang,
)


def test_side_by_side_the_miner_is_stopped_when_training_ends(side_by_side):
    finished = side_by_side(STEPS=9)
    assert finished.returncode == 0, finished.stderr
    calls = side_by_side.calls()
    assert sorted(names(calls[5:7])) == ["run_ann", "run_ann_data_gen"]
    (mined,), (trained,) = only(calls, "run_ann_data_gen"), only(calls, "run_ann")
    assert mined["end_output_num"] == trained["round"] == "-1"
    assert trained["total_training_steps"] == "18"
    assert not {"max_steps", "num_training_steps"} & set(trained)
    assert is_gone(side_by_side, "run_ann_data_gen")
    table = next(call.values for call in calls if call.script == "results_table")
    rows = table[table.index("--rows") + 1 :]
    assert [row.split("=")[0] for row in rows] == ["initial checkpoint", "after 18 steps"]
    assert side_by_side(STEPS=9).returncode == 0
    assert names(side_by_side.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]


@pytest.mark.parametrize(
    ("fails", "other", "reason"),
    [
        ("run_ann_data_gen", "run_ann", "the miner has ended too early: training is stopped"),
        ("run_ann", "run_ann_data_gen", "training has ended too early"),
    ],
)
def test_side_by_side_one_that_fails_stops_the_other_and_the_same_command_goes_on(side_by_side, fails, other, reason):
    side_by_side.checkout.let_fail(fails)
    failed = side_by_side()
    assert (failed.returncode, reason in failed.stderr.splitlines()[-1]) == (2, True), failed.stderr
    assert failed.stderr.splitlines()[-2] == "error: told to fail"
    assert is_gone(side_by_side, other)
    assert ("told to fail" in (side_by_side.out / "miner.log").read_text()) == (fails == "run_ann_data_gen")
    side_by_side.checkout.let_fail(fails, False)
    side_by_side.calls()
    again = side_by_side()
    assert again.returncode == 0, again.stderr
    assert sorted(names(side_by_side.calls())[5:7]) == ["run_ann", "run_ann_data_gen"]


def test_side_by_side_what_the_miner_left_unfinished_goes_when_training_has_ended_and_not_before(side_by_side):
    embeddings = [f"embeddings-9/{name}passages.0-of-2.unfinished.npy" for name in ("", "sci fact/")]
    names = "search-train-query/0a/rows-0-0.npy", *embeddings
    unfinished = [side_by_side.out / "ann_data" / name for name in names]
    whole = side_by_side.out / "ann_data" / "embeddings-9" / "passages.1-of-2.npy"
    for path in (*unfinished, whole):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    side_by_side.checkout.let_fail("run_ann")
    assert side_by_side().returncode == 2
    assert all(path.exists() for path in unfinished)
    side_by_side.checkout.let_fail("run_ann", False)
    assert side_by_side().returncode == 0
    assert not any(path.exists() for path in unfinished)
    assert [path.name for path in whole.parents[1].iterdir() if path.is_dir()] == ["embeddings-9"]
    assert whole.exists()


def test_side_by_side_a_script_that_is_stopped_leaves_nobody_behind(side_by_side):
    both = "run_ann_data_gen", "run_ann"
    process = start_and_hang(side_by_side, *both)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert all(is_gone(side_by_side, script) for script in both)


@pytest.mark.parametrize(
    ("instances", "visible", "training", "mining"),
    [
        ((), None, (1, ""), (1, "")),
        ((0,) * 2, None, (1, "0"), (1, "1")),
        ((0,) * 5, None, (2, "0,1"), (3, "2,3,4")),
        ((0,) * 4, "2,3", (1, "2"), (1, "3")),
        ((0,) * 4, "GPU-3aaa-1,GPU-1,0", (1, "GPU-3aaa-1"), (2, "GPU-1,0")),
        ((3,), None, (1, "MIG-00bb-1"), (1, "MIG-01bb-1,MIG-02bb-1")),
        ((0,) * 2, "", (1, ""), (1, "")),
    ],
)
def test_side_by_side_each_has_its_half_of_the_gpus(side_by_side, instances, visible, training, mining):
    side_by_side.checkout.list_gpus(*instances)
    cuda = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    finished = side_by_side(EPISODES=1, **cuda)
    assert finished.returncode == 0, finished.stderr
    processes = {call.script: call.processes for call in side_by_side.calls()}
    for script, expected in (("run_ann", training), ("run_ann_data_gen", mining)):
        assert (processes[script], side_by_side.checkout.process_of(script)[1]) == expected
    evaluates = side_by_side.checkout.process_of("evaluate_beir")[1]
    assert evaluates == ("all" if visible is None else visible)


def test_side_by_side_on_one_gpu_must_be_asked_for(side_by_side):
    side_by_side.checkout.list_gpus(0)
    assert "ASYNC wants two GPUs, and there is one" in side_by_side().stderr
    assert side_by_side.calls() == []
    assert side_by_side("--training_gpus", 0, "--mining_gpus", 0).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "visible", "asked", "reason"),
    [
        (4, "2,3", "0", "TRAINING_GPUS names '0', which is not in CUDA_VISIBLE_DEVICES=2,3"),
        (4, None, "4", "the list '4' names '4', and nvidia-smi"),
        (0, None, "0", "TRAINING_GPUS names '0', and there is no GPU"),
    ],
)
def test_side_by_side_gpus_of_others_are_refused(side_by_side, gpus, visible, asked, reason):
    if gpus:
        side_by_side.checkout.list_gpus(*[0] * gpus)
    cuda = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert reason in side_by_side("--training_gpus", asked, **cuda).stderr
    assert side_by_side.calls() == []


def test_side_by_side_fewer_steps_than_are_trained_already_are_refused(side_by_side):
    assert side_by_side(STEPS=9).returncode == 0
    side_by_side.calls()
    assert "training has gone beyond EPISODES x STEPS, 9 steps; give more EPISODES" in (
        side_by_side(STEPS=9, EPISODES=1).stderr
    )
    assert names(side_by_side.calls()) == [*READING, *STORES, *CHOICE]
