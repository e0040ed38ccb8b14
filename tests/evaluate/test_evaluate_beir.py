"""A checkpoint on both layouts of a collection, in which every query's id is a passage's id too."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import AutoTokenizer

from data import beir_data, msmarco_data
from drivers import run_ann_data_gen
from evaluate import bm25, evaluate_beir
from evaluate.metrics_file import read_per_query
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from utils.mining.clustering import read_assignment
from utils.runtime.errors import InputError

MODEL_TYPE = "rdot_nll_condenser"
LENGTHS = ("--max_seq_length", 32, "--max_query_length", 32)
PASSAGES = [" ".join(np.random.default_rng(i).choice(WORDS, size=6).tolist()) for i in range(30)]
QUERIES = {n: " ".join(PASSAGES[n].split()[:4]) for n in range(8)}  # query n begins the passage of the same id


@pytest.fixture
def script(monkeypatch):
    """Runs a script's main in this process."""

    def run(module: ModuleType, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *map(str, arguments)])
        module.main()

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_bert_tokenizer(folder)
    tiny_bert(vocabulary=len(AutoTokenizer.from_pretrained(folder))).save_pretrained(folder)
    return folder


@pytest.fixture
def msmarco(tmp_path) -> Path:
    """A collection in MS MARCO's layout: the passage that is relevant to query n has the same number n."""
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(PASSAGES)))
    for split in ("train", "dev"):
        (folder / f"queries.{split}.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in QUERIES.items()))
        (folder / f"qrels.{split}.tsv").write_text("".join(f"{i}\t0\t{i}\t1\n" for i in QUERIES))
    return folder


@pytest.fixture
def beir(tmp_path) -> Path:
    """The same in BEIR's layout, where query n has another relevant passage, n + 10."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", dict(enumerate(PASSAGES))), ("queries", QUERIES)):
        lines = (json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{i}\t{i + 10}\t1\n" for i in QUERIES))
    return folder


def ranked_ids(run_file: Path) -> dict[str, list[str]]:
    """Query id → passage ids, best first."""
    ranked: dict[str, list[str]] = {}
    for line in run_file.read_text().splitlines():
        query, _, passage, *_ = line.split()
        ranked.setdefault(query, []).append(passage)
    return ranked


def metrics_in(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def test_dev_metrics_are_the_miners_own(script, checkpoint, msmarco, tmp_path):
    model = ("--model_type", MODEL_TYPE)
    tokens, ann_data = tmp_path / "tokens", tmp_path / "ann_data"
    script(
        msmarco_data,
        *("--data_dir", msmarco, "--out_data_dir", tokens, "--model_name_or_path", checkpoint, *model, *LENGTHS),
    )
    script(
        run_ann_data_gen,
        *("--data_dir", tokens, "--init_model_dir", checkpoint, "--training_dir", tmp_path / "models", "--no_cuda"),
        *("--output_dir", ann_data, "--topk_training", 10, "--negative_sample", 2, *model, *LENGTHS),
    )
    mined_by = json.loads((ann_data / "ann_ndcg_0").read_text())
    script(
        evaluate_beir,
        *("--data_dir", tokens, "--split", "dev", "--model_name_or_path", checkpoint, *model, "--no_cuda"),
        *("--out_dir", tmp_path / "out", "--embedding_dir", ann_data / "embeddings-0"),
    )
    metrics = metrics_in(tmp_path / "out")
    assert 0 < metrics["ndcg@10"] < 1
    assert metrics == {name: mined_by[name] for name in metrics}
    ranked = ranked_ids(tmp_path / "out" / "run.trec")
    assert all(len(passages) == len(PASSAGES) for passages in ranked.values())


@pytest.mark.parametrize("depth", [5, 1000])
def test_a_beir_query_is_not_its_own_answer(script, checkpoint, beir, tmp_path, depth):
    model = ("--model_type", MODEL_TYPE, "--model_name_or_path", checkpoint)
    script(beir_data, "--data_dir", beir, "--out_data_dir", tmp_path / "tokens", *model)
    script(
        evaluate_beir,
        *("--data_dir", tmp_path / "tokens", "--out_dir", tmp_path / "out", *model, "--no_cuda", "--depth", depth),
    )
    ranked = ranked_ids(tmp_path / "out" / "run.trec")
    assert set(ranked) == {str(query) for query in QUERIES}
    for query, passages in ranked.items():
        assert query not in passages
        assert len(passages) == min(depth, len(PASSAGES) - 1)


def test_the_miner_measures_zero_shot_collections_as_the_evaluation_does(script, checkpoint, msmarco, beir, tmp_path):
    model = ("--model_type", MODEL_TYPE)
    named = (*model, "--model_name_or_path", checkpoint)
    tokens, other = tmp_path / "tokens", tmp_path / "zero shot" / "odd set"
    script(msmarco_data, "--data_dir", msmarco, "--out_data_dir", tokens, *named, *LENGTHS)
    script(beir_data, "--data_dir", beir, "--out_data_dir", other, *named)
    mine = ("--data_dir", tokens, "--init_model_dir", checkpoint, "--training_dir", tmp_path / "models", "--no_cuda")
    script(
        run_ann_data_gen,
        *(*mine, "--output_dir", tmp_path / "ann", "--topk_training", 10, "--negative_sample", 2, *model, *LENGTHS),
        *("--zero_shot_dirs", other, "--cluster_query", "--cluster_centroids", 2),
    )
    mined_by = json.loads((tmp_path / "ann" / "ann_ndcg_0").read_text())
    embeddings = tmp_path / "ann" / "embeddings-0" / "odd set"
    before = (embeddings / "passages.0-of-1.npy").stat().st_mtime_ns
    script(
        evaluate_beir,
        *("--data_dir", other, "--out_dir", tmp_path / "out", *named, "--no_cuda", "--embedding_dir", embeddings),
    )
    assert mined_by["zero_shot"] == {"odd set": metrics_in(tmp_path / "out")}
    assert 0 < mined_by["zero_shot"]["odd set"]["ndcg@10"] < 1
    assert (embeddings / "passages.0-of-1.npy").stat().st_mtime_ns == before

    assignment, count = read_assignment(tmp_path / "ann" / "clusters_0", "dev_assignment", len(QUERIES))
    assert count == 2
    assert np.bincount(assignment, minlength=2).tolist() == mined_by["cluster_dev_queries"]


def test_values_a_query_are_kept_and_give_the_means(script, checkpoint, beir, tmp_path):
    model = ("--model_type", MODEL_TYPE, "--model_name_or_path", checkpoint)
    script(beir_data, "--data_dir", beir, "--out_data_dir", tmp_path / "tokens", *model)
    evaluation = ("--data_dir", tmp_path / "tokens", *model, "--no_cuda", "--embedding_dir", tmp_path / "embeddings")
    results = {}
    for name, flags in {
        "cls": (),
        "mean": ("--pooling", "mean"),
        "cosine": ("--pooling", "mean", "--normalize"),
    }.items():
        script(evaluate_beir, *evaluation, "--out_dir", tmp_path / name, *flags)
        results[name] = (tmp_path / name / "run.trec").read_text()
        values = read_per_query(tmp_path / name / "per_query.json")
        assert values.keys() == {str(query) for query in QUERIES}
        for measure, mean in metrics_in(tmp_path / name).items():
            assert np.mean([of_query[measure] for of_query in values.values()]) == pytest.approx(mean)
    assert len(set(results.values())) == 3  # embeddings of another reading are never taken for these
    assert all(abs(float(line.split()[4])) <= 1 + 1e-6 for line in results["cosine"].splitlines())
    script(bm25, "--data_dir", beir, "--out_dir", tmp_path / "bm25")
    assert read_per_query(tmp_path / "bm25" / "per_query.json").keys() == values.keys()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "holds no queries"),
        ({"queries": {}}, "holds no queries"),
        ({"queries": {"1": [0.5]}}, "not numbers from 0 to 1"),
        ({"queries": {"1": {"mrr": 2}}}, "not numbers from 0 to 1"),
        ({"queries": {"1": {"mrr": True}}}, "not numbers from 0 to 1"),
        ({"queries": {"1": {"mrr": 1}, "2": {"ndcg": 1}}}, "other measures"),
    ],
)
def test_damaged_values_a_query_are_refused(tmp_path, content, reason):
    (tmp_path / "per_query.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason):
        read_per_query(tmp_path / "per_query.json")


def test_bm25_leaves_a_query_out_of_its_ranking_in_beirs_layout_only(script, msmarco, beir, tmp_path):
    script(bm25, "--data_dir", msmarco, "--out_dir", tmp_path / "of msmarco")
    assert metrics_in(tmp_path / "of msmarco")["mrr@10"] > 0.5
    script(bm25, "--data_dir", beir, "--out_dir", tmp_path / "of beir")
    assert all(query not in passages for query, passages in ranked_ids(tmp_path / "of beir" / "run.trec").items())
