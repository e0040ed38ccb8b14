"""An encoder that has collapsed is told from one that ranks, and said wherever its metrics go."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data import beir_data, msmarco_data
from drivers import run_ann_data_gen
from evaluate import evaluate_beir
from evaluate.mean_of_parts import mean_of_parts
from evaluate.metrics_file import RunMetrics, read_metrics
from evaluate.model_card import metrics_table
from evaluate.results_table import read_row, table_of
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import random_store, tiny_bert, tiny_roberta, write_embeddings
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, call, save_tiny_checkpoint, write_beir, write_msmarco
from utils.batching import Sequences, pack
from utils.mining.collapse import note_collapse, spread
from utils.runtime.errors import InputError
from utils.stores.episode import read_result
from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store

LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)


def store_of(folder: Path, rows: list[list[int]]) -> Sequences:
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "source").write_text("x")
    with create_token_store(folder, TokenizerInfo("t", "0" * 64, 99, 0), 9, folder.parent / "source") as writer:
        writer.append([str(row) for row in range(len(rows))], rows)
    return Sequences(TokenStore(folder))


def test_the_spread_is_the_median_distance_of_different_neighbours_by_the_longer_ones_length(tmp_path):
    sequences = store_of(tmp_path / "store", [[1], [2], [1], [3], [4]])
    vectors = np.array([[3, 4], [3, 0], [0, 9], [0, 4], [0, 0]], np.float32)
    embeddings = write_embeddings(tmp_path / "embeddings", "passages", "t", vectors)
    # The third text is the first again. Distances 4, 5 and 4; the longer ones' lengths 5, 4 and 4.
    assert spread(sequences, embeddings) == pytest.approx(np.median([4 / 5, 5 / 4, 4 / 4]))


@pytest.mark.parametrize("rows", [[], [[1]], [[1, 2]] * 5])
def test_one_text_alone_has_no_spread(tmp_path, rows):
    vectors = np.ones((len(rows), 2), np.float32)
    sequences = store_of(tmp_path / "store", rows)
    assert spread(sequences, write_embeddings(tmp_path / "embeddings", "passages", "t", vectors)) is None


@pytest.mark.parametrize(
    ("vectors", "collapsed"),
    [
        (np.zeros((2000, 8)), True),
        (np.ones((2000, 8)), True),
        (1 + 1e-4 * np.eye(2000, 8), True),
        (np.where(np.arange(2000)[:, None] % 8, 1, np.arange(2000)[:, None]) * np.ones(8), True),  # 7 of 8 the same
        (1 + 0.02 * np.random.default_rng(0).normal(size=(2000, 8)), False),
        (1e-20 * np.random.default_rng(0).normal(size=(2000, 8)), False),
        (np.where(np.arange(2000)[:, None] < 500, 1, np.random.default_rng(0).normal(size=(2000, 8))), False),
    ],
)
def test_vectors_are_collapsed_where_nearly_all_are_nearly_equal(tmp_path, vectors, collapsed, capsys):
    sequences = store_of(tmp_path / "store", [[1 + row % 40, 1 + row // 40] for row in range(2000)])
    embeddings = write_embeddings(tmp_path / "embeddings", "passages", "t", vectors.astype(np.float32))
    note_collapse(sequences, embeddings, torch.float32)
    assert embeddings.collapsed is collapsed
    assert ("THE ENCODER HAS COLLAPSED" in capsys.readouterr().out) is collapsed


def test_what_bfloat16_cannot_tell_apart_is_collapsed_in_bfloat16_only(tmp_path):
    sequences = store_of(tmp_path / "store", [[row + 1] for row in range(90)])
    vectors = (1 + 0.002 * np.random.default_rng(0).normal(size=(90, 8))).astype(np.float32)
    embeddings = write_embeddings(tmp_path / "embeddings", "passages", "t", vectors)
    for precision, collapsed in ((torch.float32, False), (torch.bfloat16, True)):
        note_collapse(sequences, embeddings, precision)
        assert embeddings.collapsed is collapsed


@torch.inference_mode()
@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta])
@pytest.mark.parametrize("seed", range(5))
def test_random_weights_are_not_taken_for_collapsed_and_constant_attention_is(tmp_path, make, seed):
    sequences = Sequences(random_store(tmp_path / "store", 60, seed=seed))
    encoder, batch = make(seed=seed).eval(), pack([(sequences, np.arange(60))])
    batch.input_ids[batch.first] = 2  # as a tokenizer begins every text
    for damp, collapsed in ((1, False), (1e-7, True)):
        for layer in encoder.model.encoder.layer:
            layer.attention.output.dense.weight *= damp
        embeddings = write_embeddings(tmp_path / f"{damp}", "passages", "t", encoder(batch).numpy())
        note_collapse(sequences, embeddings, torch.float32)
        assert embeddings.collapsed is collapsed


def save_collapsed_checkpoint(folder: Path) -> Path:
    """A checkpoint whose last layer's vectors are all the same."""
    checkpoint = save_tiny_checkpoint(folder, "rdot_nll_condenser")
    for name in ("checksums.json", "trainer_state.json"):
        (checkpoint / name).unlink()
    weights = load_file(checkpoint / "model.safetensors")
    name = "encoder.layer.1.output.LayerNorm.weight"
    save_file(weights | {name: weights[name] * 1e-6}, checkpoint / "model.safetensors", {"format": "pt"})
    path = "encoder.layer.1.output.LayerNorm.bias"
    save_file(
        load_file(checkpoint / "model.safetensors") | {path: torch.ones_like(weights[path])},
        checkpoint / "model.safetensors",
        {"format": "pt"},
    )
    return checkpoint


def test_evaluation_and_mining_say_that_an_encoder_has_collapsed_and_keep_it_with_the_metrics(tmp_path, capsys):
    raw, stores = write_msmarco(tmp_path / "raw"), tmp_path / "stores"
    tokenizer = tiny_bert_tokenizer(tmp_path / "tokenizer")
    read = "--model_name_or_path", tokenizer, "--model_type", "rdot_nll_condenser", *LENGTHS
    call(msmarco_data, "--data_dir", raw, "--out_data_dir", stores, *read)
    beir, zero_shot = write_beir(tmp_path / "beir"), tmp_path / "others"
    call(beir_data, "--data_dir", beir, "--out_data_dir", zero_shot, *read)
    model = ("--model_type", "rdot_nll_condenser", "--no_cuda")
    for checkpoint, collapsed in (
        (save_tiny_checkpoint(tmp_path / "good", "rdot_nll_condenser"), False),
        (save_collapsed_checkpoint(tmp_path / "bad"), True),
    ):
        out = checkpoint.parent
        capsys.readouterr()
        named = ("--data_dir", stores, "--split", "dev", "--out_dir", out, "--model_name_or_path", checkpoint)
        call(evaluate_beir, *named, *model)
        said = capsys.readouterr().out
        assert (said.count("THE ENCODER HAS COLLAPSED") == 2) is collapsed  # queries and passages
        assert ("(collapsed: no ranking)" in said.splitlines()[-1]) is collapsed
        metrics = read_metrics(out / "metrics.json")
        assert metrics.collapsed is collapsed
        row = read_row(f"after episode 1={out / 'metrics.json'}")
        assert ("after episode 1 (collapsed: no ranking)" in table_of([row])[1]) is collapsed
        assert ("(collapsed: no ranking)" in metrics_table([("dev", metrics)], False)) is collapsed

        mining = ("--data_dir", stores, "--output_dir", out / "ann", "--training_dir", out / "none", *LENGTHS)
        call(run_ann_data_gen, *mining, "--zero_shot_dirs", zero_shot, "--init_model_dir", checkpoint, *model)
        assert ("THE ENCODER HAS COLLAPSED" in capsys.readouterr().out) is collapsed
        names = ["train-query", "dev-query", "passages", "others"]
        assert read_result(out / "ann", 0).get("collapsed") == (names if collapsed else None)


def test_a_mean_of_parts_has_collapsed_where_a_part_has(monkeypatch):
    parts = {name: RunMetrics("r", name, "c", 1, {"mrr": 0.5}, collapsed=name == "b") for name in "ab"}
    assert mean_of_parts(parts, "of two").collapsed
    assert not mean_of_parts({"a": parts["a"]}, "of one").collapsed


@pytest.mark.parametrize("value", ["true", 1, None])
def test_another_value_than_true_or_false_is_refused(tmp_path, value):
    path = tmp_path / "metrics.json"
    content = {"run": "r", "collection": "c", "checkpoint": None, "queries": 1, "metrics": {}, "collapsed": value}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"collapsed is .*evaluate again"):
        read_metrics(path)
