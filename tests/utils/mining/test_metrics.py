"""The measures against their definitions, written out here in numpy, query by query."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.mining.metrics import MEASURES, evaluate_run, mean_by_cluster
from utils.runtime.errors import InputError
from utils.stores.qrels import Qrels


def by_definition(ranking: list[int], grades: dict[int, int]) -> dict[str, float]:
    """One query's measures from the textbook; `ranking` holds passage rows, `grades` those above 0."""
    ranking = [row for row in ranking if row >= 0]
    gains = np.array([grades.get(row, 0) for row in ranking], dtype=np.float64)
    ideal = np.sort(np.array(list(grades.values()), dtype=np.float64))[::-1]

    def dcg(values: np.ndarray) -> float:
        return float((values / np.log2(np.arange(len(values)) + 2)).sum())

    hits = gains > 0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    reciprocal = 1 / (np.flatnonzero(hits)[0] + 1) if hits.any() else 0.0
    return {
        "ndcg@10": dcg(gains[:10]) / dcg(ideal[:10]),
        "map@10": float(precision[:10][hits[:10]].sum()) / len(grades),
        "mrr@10": reciprocal if reciprocal >= 0.1 else 0.0,
        "mrr": reciprocal,
        "recall@100": hits[:100].sum() / len(grades),
        "recall@1000": hits[:1000].sum() / len(grades),
    }


@st.composite
def rankings_and_judgments(draw):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, passages = draw(st.integers(1, 4)), draw(st.sampled_from([1, 5, 15, 130, 1100]))
    depth = draw(st.sampled_from([1, 9, 11, 101, 1050]))
    ranked = np.full((queries, depth), -1, dtype=np.int64)
    for query in range(queries):
        length = generator.integers(0, min(depth, passages) + 1)
        ranked[query, :length] = generator.permutation(passages)[:length]
    judgments = [
        (query, int(passage), int(generator.integers(-1, 4)))
        for query in range(queries)
        for passage in generator.permutation(passages)[: generator.integers(0, 30)]
    ]
    return ranked, [*judgments, (0, passages, 1)]


@settings(max_examples=120, deadline=None)
@given(rankings_and_judgments())
def test_measures_equal_their_definitions(case):
    ranked, judgments = case
    evaluation = evaluate_run(ranked, Qrels.of(judgments))
    assert set(evaluation.values) == set(MEASURES)
    expected = {name: [] for name in MEASURES}
    for query in range(len(ranked)):
        grades = {p: grade for q, p, grade in judgments if q == query and grade > 0}
        for name in MEASURES:
            value = evaluation.values[name][query]
            if grades:
                expected[name].append(by_definition(ranked[query].tolist(), grades)[name])
                assert value == pytest.approx(expected[name][-1], abs=1e-12), name
            else:
                assert math.isnan(value)
    assert evaluation.queries == len(expected["mrr"])
    for name, values in expected.items():
        assert evaluation.means[name] == pytest.approx(np.mean(values), abs=1e-12)


def test_a_case_computed_by_hand():
    ranked = np.array([[7, 3, 9, 1, -1]])
    evaluation = evaluate_run(ranked, Qrels.of([(0, 3, 2), (0, 1, 1), (0, 5, 3), (0, 9, 0)]))
    dcg = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert evaluation.means == {
        "ndcg@10": pytest.approx(dcg / ideal),
        "map@10": pytest.approx((1 / 2 + 2 / 4) / 3),
        "mrr@10": 0.5,
        "mrr": 0.5,
        "recall@100": pytest.approx(2 / 3),
        "recall@1000": pytest.approx(2 / 3),
    }


def test_the_order_given_counts_and_not_the_passages_names():
    # trec_eval orders passages of equal score by their names: whichever way, one of these two would fail.
    for first, second in ((2, 10), (10, 2)):
        ranked = np.array([[first, second]])
        assert evaluate_run(ranked, Qrels.of([(0, first, 1)])).means["mrr"] == 1.0
        assert evaluate_run(ranked, Qrels.of([(0, second, 1)])).means["mrr"] == 0.5


def test_mrr_at_10_ends_at_rank_10():
    ranked = np.arange(12).reshape(1, 12)
    for row, expected in ((9, 0.1), (10, 0.0)):
        evaluation = evaluate_run(ranked, Qrels.of([(0, row, 1)]))
        assert evaluation.means["mrr@10"] == pytest.approx(expected)
        assert evaluation.means["mrr"] == pytest.approx(1 / (row + 1))


def test_a_query_without_a_relevant_passage_does_not_count_and_one_without_a_ranking_does():
    ranked = np.array([[4], [4], [-1], [4]])
    evaluation = evaluate_run(ranked, Qrels.of([(0, 4, 1), (1, 4, 0), (2, 4, 1)]))
    np.testing.assert_array_equal(evaluation.values["mrr"], [1.0, np.nan, 0.0, np.nan])
    assert evaluation.means["mrr"] == 0.5
    assert evaluation.queries == 2


def test_only_the_measures_asked_for_are_given():
    evaluation = evaluate_run(np.array([[0]]), Qrels.of([(0, 0, 1)]), ["mrr@10"])
    assert evaluation.means == {"mrr@10": 1.0}


def test_no_relevant_passage_at_all_is_an_input_error():
    for judgments in ([], [(0, 0, 0)]):
        with pytest.raises(InputError, match="no query has a relevant passage"):
            evaluate_run(np.array([[0]]), Qrels.of(judgments))


@pytest.mark.parametrize(
    ("ranked", "message"),
    [
        (np.array([[-1, 3]]), "padding"),
        (np.array([[3, 1, 3]]), "twice"),
        (np.array([[3.0, 1.0]]), "integers"),
        (np.array([3, 1]), "integers"),
    ],
)
def test_what_is_no_ranking_is_refused(ranked, message):
    with pytest.raises(ValueError, match=message):
        evaluate_run(ranked, Qrels.of([(0, 3, 1)]))


def test_a_judgment_beyond_the_ranking_is_refused():
    with pytest.raises(ValueError, match="query row 1 "):
        evaluate_run(np.array([[0]]), Qrels.of([(1, 0, 1)]))


def test_many_judgments_are_looked_up_in_blocks(monkeypatch):
    generator = np.random.default_rng(5)
    ranked = np.array([generator.permutation(40) for _ in range(20)])
    judged = Qrels.of([(q, int(p), 1) for q in range(20) for p in generator.permutation(40)[:7]])
    whole = evaluate_run(ranked, judged)
    monkeypatch.setattr("utils.mining.metrics.PAIRS_A_BLOCK", 3)
    assert evaluate_run(ranked, judged).means == whole.means


def test_mean_by_cluster_leaves_out_unjudged_queries_and_marks_empty_clusters():
    values = np.array([1.0, np.nan, 0.5, 0.0, np.nan])
    means = mean_by_cluster(values, np.array([2, 2, 2, 0, 1]), 4)
    np.testing.assert_array_equal(means, [0.0, np.nan, 0.75, np.nan])


@pytest.mark.parametrize("clusters", [[0, 3], [-2, 0]])
def test_mean_by_cluster_refuses_a_cluster_that_is_none(clusters):
    with pytest.raises(ValueError, match="clusters"):
        mean_by_cluster(np.array([1.0, 1.0]), np.array(clusters), 3)
