"""On which GPUs run_ance.sh starts its processes, and how many triplets a step takes."""

import re

import pytest


@pytest.mark.parametrize(
    ("instances", "visible", "processes"),
    [
        ((), "0,1", 1),
        ((0,) * 4, None, 4),
        ((0,) * 4, "2,3", 2),
        ((0,) * 4, "2", 1),
        ((0,) * 4, "", 1),
        ((0,) * 4, "-1", 1),
        ((0,) * 4, "3,0,-1,2", 2),
        ((0,) * 4, "GPU-3aaa-1, GPU-0a", 2),
        ((7,), None, 1),
        ((7, 7), "MIG-01bb-1,MIG-10bb-1", 1),
        ((0, 3), "0", 1),
    ],
)
def test_a_process_is_started_on_each_gpu_that_cuda_shows(run, instances, visible, processes):
    run.checkout.list_gpus(*instances)
    cuda = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    finished = run(EPISODES=1, **cuda)
    assert finished.returncode == 0, finished.stderr
    assert {call.processes for call in run.calls() if call.launcher} == {processes}
    assert run.checkout.process_of("run_ann")[1] == ("all" if visible is None else visible)


@pytest.mark.parametrize("visible", ["4", "0,x", "GPU-9", "MIG-09"])
def test_a_gpu_that_is_not_there_is_refused(run, visible):
    run.checkout.list_gpus(0, 0)
    refused = run(CUDA_VISIBLE_DEVICES=visible)
    assert (refused.returncode, f"names '{visible.split(',')[-1]}'" in refused.stderr) == (2, True)
    assert run.calls() == []


@pytest.mark.parametrize(
    ("instances", "visible", "processes", "accumulation"),
    [
        ((), None, 2, "1"),
        ((0,), None, 1, "2"),
        ((3,), None, 1, "2"),
        ((0,) * 4, "3", 1, "2"),
        ((0,) * 3, None, 2, "1"),
    ],
)
def test_the_demo_takes_as_many_triplets_a_step_on_one_gpu(checkout, instances, visible, processes, accumulation):
    checkout.list_gpus(*instances)
    cuda = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    finished = checkout.run("run_ance.sh", OUT_DIR="a demo", **cuda)
    assert finished.returncode == 0, finished.stderr
    assert "a step takes" not in finished.stderr, "its numbers are its own"
    (trained, *_) = (call for call in checkout.calls() if call.script == "run_ann")
    assert trained.processes == processes
    flags = trained.flags
    assert (flags["per_gpu_train_batch_size"], flags["gradient_accumulation_steps"]) == ("16", accumulation)


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"PROCESSES": 1}, "takes 64 triplets .*published are 512 triplets, .*--accumulation 8 gives 512"),
        (
            {"PROCESSES": 3, "MODEL_SIZE": "large"},
            "takes 96 triplets .*published are 256 triplets, .*--accumulation 3 gives 288",
        ),
        ({"PROCESSES": 2, "BATCH_SIZE": 32, "ACCUMULATION": 7}, "takes 448 triplets .*--accumulation 8 gives 512"),
        ({"PROCESSES": 8}, ""),
        ({"PROCESSES": 1, "ACCUMULATION": 8}, ""),
        (
            {"PROCESSES": 1, "ACCUMULATION": 4, "MODEL_SIZE": "large"},
            "takes 128 triplets .*--accumulation 8 gives 256",
        ),
    ],
)
def test_fewer_triplets_a_step_than_published_are_said_with_the_cure(run, settings, warning):
    finished = run(**settings)
    assert finished.returncode == 0, finished.stderr
    said = re.search(f"^warning: a step {warning}$", finished.stderr, re.MULTILINE) if warning else None
    assert bool(said) == ("a step takes" in finished.stderr) == bool(warning), finished.stderr


def test_what_a_launcher_starts_is_not_counted_but_the_published_number_is_said(run):
    run.checkout.add_program("on-all-nodes", 'exec "$ANCE_VENV/bin/python" agent --nproc_per_node 4 "$@"')
    finished = run(LAUNCHER="on-all-nodes")
    assert "a step takes 64 triplets of each process that LAUNCHER starts; published are 512" in finished.stdout
