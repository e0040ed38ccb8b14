"""sentence-transformers' InformationRetrievalEvaluator gives a checkpoint the metrics that evaluate_beir.py gives it.

Two of its measures mean something else where judgments are graded or many, and the tests say what: its nDCG knows no
grades, and its MAP@k divides by at most k relevant passages where trec_eval divides by all of them.
Nor does it leave a passage out that has the query's own id, as BEIR's evaluation and ours do; here no id is both.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from data import beir_data
from evaluate import evaluate_beir
from model.families import FAMILIES
from model.reading import AUTO, HeadLayer, Reading
from tests.tiny import WORDS
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, call, save_random_checkpoint, save_tiny_checkpoint
from utils.stores.token_store import TokenStore

generator = np.random.default_rng(0)
PASSAGES = {f"p{i}": " ".join(generator.choice(WORDS, size=generator.integers(4, 40)).tolist()) for i in range(150)}
QUERIES = {f"q{i}": " ".join(generator.choice(WORDS, size=generator.integers(2, 14)).tolist()) for i in range(20)}
QUERIES |= {name: text.title() for name, text in QUERIES.items() if name[-1] in "02468"}
CONDENSER = "rdot_nll_condenser"
READINGS = {
    "first token": Reading("cls", False, "how is ", "The ", True),
    "mean, dense, length 1": Reading(
        "mean", True, "what: ", "a\nb ", head=(HeadLayer("Dense", 16, 12, activation="Tanh"),)
    ),
}
Judgments = dict[str, dict[str, int]]


def judge(grades: list[int], seed: int = 0) -> Judgments:
    """Random passages of these grades for each query."""
    draw = np.random.default_rng(seed)
    ids = list(PASSAGES)
    return {query: dict(zip(draw.choice(ids, len(grades), replace=False), grades, strict=True)) for query in QUERIES}


def write_beir(folder: Path, judgments: Judgments) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": i, "title": "", "text": text} for i, text in PASSAGES.items()]
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = (f"{query}\t{p}\t{grade}\n" for query, judged in judgments.items() for p, grade in judged.items())
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    return folder


def both_evaluate(
    folder: Path, checkpoint: Path, model_type: str, judgments: Judgments, similarity: str = "dot"
) -> tuple[dict[str, float], dict[str, float]]:
    """Our metrics of a checkpoint, and the library's of the same names."""
    model = ("--model_type", model_type, "--model_name_or_path", checkpoint)
    lengths = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
    raw, tokens, out = write_beir(folder / "raw", judgments), folder / "tokens", folder / "out"
    call(beir_data, "--data_dir", raw, "--out_data_dir", tokens, *model, *lengths)
    call(evaluate_beir, "--data_dir", tokens, "--out_dir", out, *model, "--no_cuda")
    ours = json.loads((out / "metrics.json").read_text())["metrics"]

    relevant = {query: {p for p, grade in judged.items() if grade > 0} for query, judged in judgments.items()}
    evaluator = InformationRetrievalEvaluator(
        QUERIES, PASSAGES, relevant, map_at_k=[10], precision_recall_at_k=[100], write_csv=False
    )
    library = evaluator(SentenceTransformer(str(checkpoint), device="cpu"))
    names = ("ndcg@10", "map@10", "mrr@10", "recall@100")
    return {name: ours[name] for name in names}, {name: library[f"{similarity}_{name}"] for name in names}


@pytest.mark.parametrize("model_type", ["rdot_nll", "rdot_nll_condenser"])
def test_all_metrics_agree_on_plain_judgments(tmp_path, model_type):
    ours, library = both_evaluate(
        tmp_path, save_tiny_checkpoint(tmp_path, model_type), model_type, judge([1] * 8 + [0])
    )
    assert ours == pytest.approx(library, abs=1e-4)
    assert all(0.01 < value < 0.99 for value in ours.values()), "a measure at its end says nothing"


def test_on_graded_judgments_only_ndcg_differs_for_the_librarys_knows_no_grades(tmp_path):
    ours, library = both_evaluate(
        tmp_path, save_tiny_checkpoint(tmp_path, CONDENSER), CONDENSER, judge([3, 3, 2, 2, 1, 1, 0])
    )
    assert ours["ndcg@10"] != pytest.approx(library["ndcg@10"], abs=1e-3)
    del ours["ndcg@10"], library["ndcg@10"]
    assert ours == pytest.approx(library, abs=1e-4)


def test_where_more_passages_are_relevant_than_ranked_only_map_differs(tmp_path):
    ours, library = both_evaluate(tmp_path, save_tiny_checkpoint(tmp_path, CONDENSER), CONDENSER, judge([1] * 15))
    assert ours.pop("map@10") * 15 / 10 == pytest.approx(library.pop("map@10"), abs=1e-4)
    assert ours == pytest.approx(library, abs=1e-4)


def judge_apart(checkpoint: Path) -> Judgments:
    """Eight passages of each query whose scores are apart from all others, so that rounding ranks none otherwise.

    Four of them are among the first 20 such.
    """
    model = SentenceTransformer(str(checkpoint), device="cpu")
    scores = model.similarity(model.encode_query([*QUERIES.values()]), model.encode_document([*PASSAGES.values()]))
    judgments, draw = {}, np.random.default_rng(1)
    for query, own in zip(QUERIES, scores.double().numpy(), strict=True):
        distances = np.abs(own[:, None] - own) + np.diag(np.full(len(own), np.inf))
        ranked = np.argsort(-own)
        apart = ranked[distances.min(1)[ranked] > 5e-5 * np.abs(own).max()]
        rows = [*draw.choice(apart[:20], 4, replace=False), *draw.choice(apart[20:], 4, replace=False)]
        judgments[query] = {f"p{row}": 1 for row in rows}
    return judgments


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_every_family_and_reading_has_the_librarys_metrics_prompts_and_cut_texts_included(tmp_path, family, reading):
    checkpoint = save_random_checkpoint(tmp_path / "model", family, reading)
    judgments = judge_apart(checkpoint)
    similarity = "cosine" if reading.normalized else "dot"
    ours, library = both_evaluate(tmp_path, checkpoint, AUTO, judgments, similarity)
    assert ours == pytest.approx(library, abs=1e-4)
    assert all(0.01 < value < 0.99 for value in ours.values()), "a measure at its end says nothing"
    for kind, length in (("passages", PASSAGE_LENGTH), ("test-query", QUERY_LENGTH)):
        lengths = np.diff(TokenStore(tmp_path / "tokens" / kind).offsets)
        assert lengths.min() < length == lengths.max(), "some texts are cut and some are not"
