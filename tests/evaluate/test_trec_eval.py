"""The metrics that are reported are those of `trec_eval -c` on the files that are written, whatever the collection.

The collections here have passages of equal texts, so of equal scores, judgments of passages that are not there,
grades below 0, and ids with blanks and % signs. trec_eval's own code is called through pytrec_eval, which knows the
files only.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from data import beir_data, msmarco_data
from drivers import run_ann_data_gen
from evaluate import bm25, evaluate_beir
from evaluate.metrics_file import read_per_query
from evaluate.search_collection import Arguments, Searcher
from model.encoders import Encoder
from tests.tiny import WORDS
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, call, save_tiny_checkpoint
from utils.stores.episode import read_episode
from utils.stores.token_store import TokenStore
from utils.stores.trec import read_trec_run

TREC_NAMES = {
    "ndcg@10": "ndcg_cut_10",
    "map@10": "map_cut_10",
    "mrr@10": "recip_rank",
    "mrr": "recip_rank",
    "recall@100": "recall_100",
    "recall@1000": "recall_1000",
}
draw = np.random.default_rng(3)
DISTINCT = [" ".join(draw.choice(WORDS, size=6).tolist()) for _ in range(9)]
# Many equal texts, whose ids are in another order than their rows.
PASSAGES = {f"file {number} 100%.pdf": DISTINCT[number % 9] for number in draw.permutation(60).tolist()}
GONE = ["gone 1", "gone%2", "gone"]
QUERIES = {f"query {n}": text for n, text in enumerate(DISTINCT[:8])}
ALL_GONE = "query 7"
LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)


def draw_judgments() -> dict[str, dict[str, int]]:
    """Some passages of each query, of grades -1 to 3 and at least one relevant, and some that are gone."""
    judgments = {}
    for query in QUERIES:
        chosen = draw.choice(list(PASSAGES), 7, replace=False).tolist()
        judgments[query] = dict(zip(chosen, [1, *draw.integers(-1, 4, 6).tolist()], strict=True))
        judgments[query] |= {GONE[0]: 2, GONE[1]: 0} if int(query[-1]) % 2 else {}
    judgments[ALL_GONE] = {GONE[0]: 1, GONE[2]: 3, next(iter(PASSAGES)): 0}
    return judgments


JUDGMENTS = draw_judgments()


def write_beir(folder: Path, passages=PASSAGES, queries=QUERIES, judgments=JUDGMENTS) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", passages), ("queries", queries)):
        lines = (json.dumps({"_id": text_id, "text": text}) + "\n" for text_id, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    lines = (f"{query}\t{passage}\t{grade}\n" for query, of in judgments.items() for passage, grade in of.items())
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def write_msmarco(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in PASSAGES.items()))
    for split in ("train", "dev"):
        (folder / f"queries.{split}.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in QUERIES.items()))
        lines = (f"{query}\t0\t{p}\t{grade}\n" for query, judged in JUDGMENTS.items() for p, grade in judged.items())
        (folder / f"qrels.{split}.tsv").write_text("".join(lines))
    return folder


def trec_eval(folder: Path) -> dict[str, float]:
    """`trec_eval -c`, and for mrr@10 `trec_eval -c -M 10`, on qrels.trec and run.trec."""
    with (folder / "qrels.trec").open() as qrels, (folder / "run.trec").open() as run:
        judged, ranked = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    first = {
        query: dict(sorted(of.items(), key=lambda pair: (np.float32(pair[1]), pair[0].encode()), reverse=True)[:10])
        for query, of in ranked.items()
    }
    found = {}
    for name, trec_name in TREC_NAMES.items():
        evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut", "map_cut", "recip_rank", "recall"})
        values = evaluator.evaluate(first if name == "mrr@10" else ranked).values()
        found[name] = math.fsum(of_query[trec_name] for of_query in values) / len(judged)
    return found


def metrics_in(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == pytest.approx(trec_eval(folder), abs=1e-6)
    per_query = read_per_query(folder / "per_query.json")
    for name, mean in metrics.items():
        assert mean == pytest.approx(np.mean([of_query[name] for of_query in per_query.values()]))
    return metrics


@pytest.fixture(autouse=True)
def coarse_vectors(monkeypatch):
    """Vectors of one decimal: equal texts score alike, however a machine rounds them in this batch or that."""
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, tokens: forward(self, tokens).round(decimals=1))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple:
    checkpoint = save_tiny_checkpoint(tmp_path_factory.mktemp("model"), "rdot_nll_condenser")
    return "--model_type", "rdot_nll_condenser", "--model_name_or_path", checkpoint


def evaluate(model: tuple, raw: Path, folder: Path) -> Path:
    """Where the checkpoint's results on a collection in BEIR's layout are."""
    call(beir_data, "--data_dir", raw, "--out_data_dir", folder / "tokens", *model, *LENGTHS)
    call(evaluate_beir, "--data_dir", folder / "tokens", "--out_dir", folder / "out", *model, "--no_cuda")
    return folder / "out"


def test_a_checkpoints_metrics_are_trec_evals_with_ties_missing_passages_and_ids_with_blanks(model, tmp_path, capsys):
    out = evaluate(model, write_beir(tmp_path / "raw"), tmp_path)
    metrics = metrics_in(out)
    assert all(0.02 < value < 0.98 for value in metrics.values()), "a measure at its end says nothing"
    assert read_per_query(out / "per_query.json")[ALL_GONE] == dict.fromkeys(metrics, 0.0)
    judged = (out / "qrels.trec").read_text().splitlines()
    assert len(judged) == sum(map(len, JUDGMENTS.values()))
    assert "query%207 0 gone%201 1" in judged
    assert "query%201 0 gone%252 0" in judged
    said = capsys.readouterr().out
    relevant = sum(grade > 0 for judged in JUDGMENTS.values() for grade in judged.values())
    count = f"the collection lacks the passages of 5 of {relevant} relevant judgments"
    assert said.count(f"test.tsv: {count}") == said.count(f"test-query: {count}") == 1
    assert said.count("and 1 of 8 queries, which have no others, with 0") == 2


def test_a_search_shows_equal_scores_in_the_order_that_was_measured(model, tmp_path):
    raw = write_beir(tmp_path / "raw")
    ranked = read_trec_run(evaluate(model, raw, tmp_path) / "run.trec")
    how = {"model_type": model[1], "model_name_or_path": str(model[3]), "no_cuda": True}
    searcher = Searcher(Arguments(collection=str(tmp_path / "tokens"), data_dir=str(raw), depth=12, **how))
    for query, text in QUERIES.items():
        assert [hit.id for hit in searcher(text)] == list(ranked[query])[:12]


def test_bm25s_metrics_are_trec_evals_on_the_same_queries_and_judgments(model, tmp_path, capsys):
    raw = write_beir(tmp_path / "raw")
    call(bm25, "--data_dir", raw, "--out_dir", tmp_path / "bm25")
    assert "test.tsv: the collection lacks the passages of 5 of" in capsys.readouterr().out
    metrics = metrics_in(tmp_path / "bm25")
    assert all(0.02 < value < 0.98 for value in metrics.values())
    own = evaluate(model, raw, tmp_path)
    assert (own / "qrels.trec").read_text() == (tmp_path / "bm25" / "qrels.trec").read_text()
    first, second = (read_per_query(folder / "per_query.json").keys() for folder in (own, tmp_path / "bm25"))
    assert list(first) == list(second) == list(QUERIES)


def test_an_encoder_that_gives_all_texts_one_vector_has_the_metrics_of_the_ids_order(model, tmp_path):
    same = dict.fromkeys(sorted(PASSAGES), DISTINCT[0])
    relevant = {query: {sorted(PASSAGES)[0]: 1} for query in QUERIES}  # the first row, and the last by its id
    out = evaluate(model, write_beir(tmp_path / "raw", same, judgments=relevant), tmp_path)
    assert metrics_in(out)["mrr"] == pytest.approx(1 / len(PASSAGES))


def test_the_miners_dev_metrics_are_the_evaluations_and_missing_passages_are_never_trained_on(model, tmp_path):
    tokens, ann = tmp_path / "tokens", tmp_path / "ann"
    call(msmarco_data, "--data_dir", write_msmarco(tmp_path / "raw"), "--out_data_dir", tokens, *model, *LENGTHS)
    call(
        run_ann_data_gen,
        *("--data_dir", tokens, *model[:2], "--init_model_dir", model[3], "--training_dir", tmp_path / "models"),
        *("--output_dir", ann, "--topk_training", 60, "--negative_sample", 4, *LENGTHS, "--no_cuda"),
        *("--cluster_query", "--cluster_centroids", 2),
    )
    call(
        evaluate_beir,
        *("--data_dir", tokens, "--split", "dev", *model, "--no_cuda", "--out_dir", tmp_path / "out"),
        *("--embedding_dir", ann / "embeddings-0"),
    )
    metrics, mined = metrics_in(tmp_path / "out"), json.loads((ann / "ann_ndcg_0").read_text())
    assert metrics == {name: mined[name] for name in metrics}
    assert all(0.02 < value < 0.98 for value in metrics.values())

    queries = TokenStore(tokens / "train-query")
    assert ALL_GONE not in queries.ids, "there is nothing to train on"
    assert ALL_GONE in TokenStore(tokens / "dev-query").ids
    kept = [line.split("\t") for line in (tokens / "train-qrel.tsv").read_text().splitlines()]
    assert len([line for line in kept if int(line[1]) >= len(PASSAGES)]) == 6
    passages = TokenStore(tokens / "passages")
    texts = {row: tuple(passages[row].tolist()) for row in range(len(passages))}
    episode = read_episode(ann / "ann_training_data_0", len(queries), len(passages), None)
    assert episode.triplets > 0
    for line, query in enumerate(episode.query_rows):
        judged = JUDGMENTS[queries.ids[query]]
        relevant = {row for row, passage in enumerate(passages.ids) if judged.get(passage, 0) > 0}
        assert episode.positive_rows[line] in relevant
        negatives = episode.negative_rows[episode.starts[line] : episode.starts[line + 1]]
        assert not {texts[row] for row in negatives.tolist()} & {texts[row] for row in relevant}


def test_where_queries_and_passages_are_numbered_apart_a_relevant_passage_of_the_same_number_stays(
    model, tmp_path, capsys
):
    passages = {str(i): text for i, text in enumerate(DISTINCT)}
    queries = {str(i): text for i, text in enumerate(DISTINCT[:8])}
    judgments = {query: {query: 1} for query in list(queries)[:7]} | {"7": {"0": 1}}
    raw = write_beir(tmp_path / "raw", passages, queries, judgments)
    out = evaluate(model, raw, tmp_path)
    call(bm25, "--data_dir", raw, "--out_dir", tmp_path / "bm25")
    assert capsys.readouterr().out.count("7 of 8 queries are judged relevant to the passage of their own id") == 2
    for folder in (out, tmp_path / "bm25"):
        assert metrics_in(folder)["mrr@10"] > 0.5
        ranked = {tuple(line.split()[i] for i in (0, 2)) for line in (folder / "run.trec").read_text().splitlines()}
        assert {("0", "0"), ("6", "6")} <= ranked
        assert ("7", "7") not in ranked
