"""A folder is held to the settings that it was begun with, as far as its files follow from them."""

import re

import pytest

from tests.commands.run_ance.running import READING, in_use, names, only


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


def test_settings_are_compared_from_any_folder(run):
    assert run().returncode == 0
    elsewhere = run.checkout.work / "elsewhere"
    elsewhere.mkdir()
    run.checkout.work = elsewhere
    finished = run(DATA_DIR="../raw", OUT_DIR=run.out, CHECKPOINT="../initial", ZERO_SHOT_DIRS="../beir/sci fact")
    assert finished.returncode == 0, finished.stderr


def test_data_that_are_refused_do_not_move_where_search_and_report_look(run):
    assert run().returncode == 0
    before = (run.out / "settings.evaluate").read_text()
    run.checkout.let_fail("msmarco_data")
    assert run(DATA_DIR="other raw").returncode == 2
    assert (run.out / "settings.evaluate").read_text() == before
