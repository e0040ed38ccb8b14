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
from evaluate.rankings import queries_may_be_passages
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert

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


def test_bm25_leaves_a_query_out_of_its_ranking_in_beirs_layout_only(script, msmarco, beir, tmp_path):
    script(bm25, "--data_dir", msmarco, "--out_dir", tmp_path / "of msmarco")
    assert metrics_in(tmp_path / "of msmarco")["mrr@10"] > 0.5
    script(bm25, "--data_dir", beir, "--out_dir", tmp_path / "of beir")
    assert all(query not in passages for query, passages in ranked_ids(tmp_path / "of beir" / "run.trec").items())


@pytest.mark.parametrize(
    ("collection", "expected"),
    [("corpus.jsonl", True), ("corpus.jsonl.gz", True), ("collection.tsv", False), ("msmarco-docs.tsv.gz", False)],
)
def test_queries_can_be_passages_in_beirs_layout_alone(collection, expected):
    assert queries_may_be_passages(collection) == expected
