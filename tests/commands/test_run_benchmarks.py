"""commands/run_benchmarks.sh, the real script, with a stub for Python."""

import pytest

from tests.commands.stub_environment import Checkout


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "x"], "unknown argument '--out'"),
        (["results"], "unknown argument 'results'"),
        (["--shape"], "--shape wants a value"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, arguments, reason):
    finished = checkout.run("run_benchmarks.sh", *arguments)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []


def test_all_benchmarks_run_with_the_settings_and_the_table_comes_last(checkout):
    finished = checkout.run(
        "run_benchmarks.sh",
        *("--out_dir", "the results", "--rounds", 3, "--mining_rounds", 2),
        SHAPE="tiny",
        CONTENDERS="erm idro",
        GROWTH_PASSAGES="20 30",
        SEARCH_PASSAGES="500",
        READING_PAIRS="70",
    )
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    once = ["encoding", "training", "training", "group_gradients", "group_gradients", "mining"]
    last = ["search", "growth", "reading", "sketch_error", "table"]
    scripts = [call.script for call in calls]
    # With mixed precision too, where this machine's processor has it.
    assert scripts[:9] == ["demo_data", "msmarco_data", "tokenizing", *once]
    assert scripts[9:] in (last, [*once, *last])
    assert [call.processes for call in calls if call.script == "group_gradients"][:2] == [0, 2]
    assert {call.flags["out_dir"] for call in calls[2:]} == {"the results"}
    for call in calls[2:-2]:
        rounds = "2" if call.script in ("mining", "search", "growth", "reading") else "3"
        assert call.flags["steps" if call.script == "group_gradients" else "rounds"] == rounds
        if call.script in ("training", "group_gradients"):
            assert call.flags | {"shape": "tiny", "triplets": "64"} == call.flags
    for call in calls[3:-5]:
        assert call.flags["fp16"] == ("false" if call in calls[3:9] else "true")
    for call in calls[2:4]:
        assert call.flags["collection_dir"] == calls[0].flags["msmarco_dir"]
        assert call.flags["max_seq_length"] == calls[1].flags["max_seq_length"]
    for call in (*calls[4:6], calls[8]):
        assert call.flags["data_dir"] == calls[1].flags["out_data_dir"]
        assert call.flags["collection_dir"] == calls[0].flags["msmarco_dir"] == calls[1].flags["data_dir"]
    assert calls[-4].values[-2:] == ["20", "30"]
    assert calls[-5].flags["passages"] == "500"
    assert calls[-3].flags["pairs"] == "70"
    assert [call.flags["reading"] for call in calls[4:6]] == ["cls", "mean"]
    for call in calls[4:6]:
        assert call.values[call.values.index("--contenders") + 1 :] == ["erm", "idro"]


def test_the_collection_is_kept_and_all_is_measured_anew(checkout):
    assert checkout.run("run_benchmarks.sh").returncode == 0
    first = [call.script for call in checkout.calls()]
    assert checkout.run("run_benchmarks.sh").returncode == 0
    assert [call.script for call in checkout.calls()] == first[1:], (
        "whether its stores are of it, the script that tokenizes sees"
    )
    assert checkout.run("run_benchmarks.sh", "--max_seq_length", 32).returncode == 0
    assert [call.script for call in checkout.calls()] == first[1:]


def test_quality_is_measured_by_its_name_alone_on_more_dev_queries_and_goes_on(checkout):
    flags = ("quality", "--out_dir", "o", "--quality_contenders", "a b", "--quality_rates", "1e-3 1")
    assert "unknown argument '--seeds'" in checkout.run("run_benchmarks.sh", *flags, "--seeds", 2).stderr
    for scripts in (["demo_data", "quality"], ["quality"]):
        finished = checkout.run("run_benchmarks.sh", *flags, "--quality_steps", 7)
        assert finished.returncode == 0, finished.stderr
        calls = checkout.calls()
        assert [call.script for call in calls] == scripts
        if len(calls) > 1:
            assert calls[0].flags["dev_queries"] == "1500"
            collection = calls[0].flags["msmarco_dir"]
        assert calls[-1].flags | {"out_dir": "o", "steps": "7", "collection_dir": collection} == calls[-1].flags
        values = calls[-1].values
        assert values[-3:] == ["--contenders", "a", "b"]
        assert values[values.index("--rates") + 1 :][:2] == ["1e-3", "1"]
    checkout.let_fail("quality")
    assert "what is done stays done" in checkout.run("run_benchmarks.sh", "quality").stderr


def test_a_failing_benchmark_ends_the_script(checkout):
    checkout.let_fail("training")
    assert checkout.run("run_benchmarks.sh").returncode != 0
    assert [call.script for call in checkout.calls()][-1] == "training"


@pytest.mark.parametrize(
    ("visible", "gpu", "processes"), [(None, "0", {1, 2}), ("3,1", "3", {1, 2}), ("2", "2", {1}), ("", "", {1, 2})]
)
def test_a_process_that_is_measured_alone_has_one_gpu_of_those_that_may_be_used(checkout, visible, gpu, processes):
    checkout.list_gpus(0, 0, 0, 0)
    cuda = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    finished = checkout.run("run_benchmarks.sh", **cuda)
    assert finished.returncode == 0, finished.stderr
    for script in ("encoding", "training", "mining", "search", "growth"):
        assert checkout.process_of(script)[1] == gpu
    started = {max(call.processes, 1) for call in checkout.calls() if call.script == "group_gradients"}
    assert started == processes
