"""The final ranking: trec_eval's order, and which passage of the query's own id is left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.mining.rankings import Ranking, final_ranking, in_trec_order
from utils.stores.known_passages import own_passages
from utils.stores.qrels import Qrels

IDS = ["b", "a", "10", "9", "é", "z", "a b", "a%b", "a!b", "\u2003"]
WRITTEN = ["b", "a", "10", "9", "é", "z", "a%20b", "a%25b", "a!b", "%E2%80%83"]


def ids_of(rows: np.ndarray) -> list[str]:
    assert (np.diff(rows) > 0).all()
    return [IDS[row] for row in rows.tolist()]


@st.composite
def rankings(draw) -> Ranking:
    """Lines of any length, best first, of few different scores."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, depth = draw(st.integers(0, 4)), draw(st.integers(1, len(IDS)))
    rows, scores = np.full((queries, depth), -1, np.int64), np.full((queries, depth), -np.inf, np.float32)
    for line in range(queries):
        length = generator.integers(0, depth + 1)
        rows[line, :length] = generator.permutation(len(IDS))[:length]
        scores[line, :length] = -np.sort(-generator.choice(np.float32([-1.5, -0.0, 0.0, 0.1, 7]), length))
    return Ranking(rows, scores)


@settings(deadline=None)
@given(rankings())
def test_the_order_is_by_score_and_then_by_the_written_ids_bytes_both_downwards(ranking):
    before = ranking.rows.copy()
    found = in_trec_order(ranking, ids_of)
    np.testing.assert_array_equal(ranking.rows, before)
    for line in range(len(ranking.rows)):
        pairs = [
            (score, WRITTEN[row].encode(), row)
            for row, score in zip(ranking.rows[line], ranking.scores[line], strict=True)
            if row >= 0
        ]
        expected = sorted(pairs, reverse=True)
        empty = ranking.rows.shape[1] - len(expected)
        assert found.rows[line].tolist() == [row for *_, row in expected] + [-1] * empty
        np.testing.assert_array_equal(found.scores[line], [score for score, *_ in expected] + [-np.inf] * empty)


def test_ids_are_asked_for_where_scores_are_equal_only():
    def of_the_tied(rows: np.ndarray) -> list[str]:
        assert rows.tolist() == [3, 4]
        return ["a", "b"]

    ranking = Ranking(np.array([[0, 1], [2, 5], [3, 4]]), np.float32([[2, 1], [3, 2], [1, 1]]))
    assert in_trec_order(ranking, of_the_tied).rows.tolist() == [[0, 1], [2, 5], [4, 3]]


def test_scores_that_rise_are_no_ranking():
    with pytest.raises(ValueError, match="best first"):
        in_trec_order(Ranking(np.array([[0, 1]]), np.float32([[1, 2]])), ids_of)


@pytest.mark.parametrize(
    ("collection", "expected"),
    [
        ("corpus.jsonl", [2, -1, 0]),
        ("corpus.jsonl.gz", [2, -1, 0]),
        ("collection.tsv", [-1, -1, -1]),
        ("msmarco-docs.tsv.gz", [-1, -1, -1]),
    ],
)
def test_a_passage_can_be_a_query_in_beirs_layout_alone(collection, expected):
    assert own_passages(["c", "x", "a"], ["a", "b", "c"], collection).tolist() == expected


def test_a_querys_own_passage_is_left_out_unless_it_is_judged_relevant_which_is_said(capsys):
    rows, scores = np.array([[0, 1, 2]] * 4), np.float32([[3, 2, 1]] * 4)
    own = np.array([0, 1, 2, -1])
    qrels = Qrels.of([(0, 0, 0), (0, 1, 1), (1, 1, 2), (2, 0, 1), (3, 0, 1)])
    ranking = final_ranking(rows, scores, 2, own, qrels, ids_of)
    assert ranking.rows.tolist() == [[1, 2], [0, 1], [0, 1], [0, 1]]
    assert ranking.scores.tolist() == [[2, 1], [3, 2], [3, 2], [3, 2]]
    assert own.tolist() == [0, 1, 2, -1]
    assert "1 of 4 queries are judged relevant to the passage of their own id" in capsys.readouterr().out
    final_ranking(rows, scores, 2, own, Qrels.of([(0, 1, 1), (1, 1, 0)]), ids_of)
    assert capsys.readouterr().out == ""
