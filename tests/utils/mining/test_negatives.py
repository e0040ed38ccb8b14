"""Mined negatives: never relevant, all dealt, and the same however the work is shared out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.mining.stub_store import unlike
from utils.mining import negatives as negatives_module
from utils.mining.negatives import (
    SHUFFLE,
    check_candidates,
    check_given,
    deal_passes,
    draw_negatives,
    given_negatives,
    random_keys,
    relevant_pairs,
)
from utils.runtime.errors import InputError
from utils.stores.known_passages import KnownPassages
from utils.stores.qrels import Qrels

QUERIES, PASSAGES, DEPTH = 12, 40, 15
NONE = np.zeros(0, int)
NO_QRELS = Qrels(NONE, NONE, NONE)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of three queries, so that there are several."""
    monkeypatch.setattr(negatives_module, "BLOCK_CANDIDATES", 3 * DEPTH + 1)


def judge(positives: dict[int, np.ndarray]) -> Qrels:
    """Judgments of these relevant passages, and, for each query, of one more that is not relevant."""
    rows = [(query, int(passage), 1) for query, passages in positives.items() for passage in passages]
    rows += [(query, PASSAGES, 0) for query in positives]
    return Qrels(*np.array(sorted(rows)).T)


def scores_of(query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
    """A score of each pair that no other pair has."""
    return (PASSAGES * query_rows + passage_rows).astype(np.float32)


def draw(
    query_rows: np.ndarray, ranking: np.ndarray, qrels: Qrels, texts: np.ndarray, count: int, **drawing
) -> np.ndarray:
    """The rows that `draw_negatives` draws, whose scores must be those of the ranking. No query is a passage."""
    known = KnownPassages(*unlike(max(QUERIES, query_rows.max() + 1), texts), qrels)
    scores = np.where(ranking >= 0, scores_of(query_rows[:, None], ranking), -np.inf)
    rows, found = draw_negatives(query_rows, ranking, scores.astype(np.float32), known, count, **drawing)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.where(rows >= 0, scores_of(query_rows[:, None], rows), -np.inf))
    return rows


def key_of(*numbers: int) -> int:
    """SplitMix64's hash of whole numbers, a number at a time, in Python's own integers."""
    key, most = 0, 2**64 - 1
    for number in numbers:
        key = (key + 0x9E3779B97F4A7C15 + number) & most
        key = ((key ^ key >> 30) * 0xBF58476D1CE4E5B9) & most
        key = ((key ^ key >> 27) * 0x94D049BB133111EB) & most
        key ^= key >> 31
    return key


@st.composite
def collections(draw):
    """Rankings of some passages for some queries, 1 … 4 positives each, and passages of equal text."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranking = np.stack([generator.permutation(PASSAGES)[:DEPTH] for _ in range(QUERIES)])
    for line in ranking:
        line[generator.integers(0, DEPTH + 1) :] = -1
    positives = {
        query: np.sort(generator.choice(PASSAGES, size=generator.integers(1, 5), replace=False))
        for query in range(QUERIES)
    }
    texts = generator.integers(0, draw(st.sampled_from([5, 30, 10**9])), size=PASSAGES).astype(np.uint64)
    return ranking, positives, texts


@settings(deadline=None, max_examples=60)
@given(collections(), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_the_lowest_keys_are_drawn_of_what_is_neither_relevant_nor_of_a_relevant_text(
    collection, count, seed, episode
):
    ranking, positives, texts = collection
    drawn = draw(np.arange(QUERIES), ranking, judge(positives), texts, count, seed=seed, episode=episode)
    assert (drawn.shape, drawn.dtype) == ((QUERIES, count), np.int64)
    for query in range(QUERIES):
        relevant_texts = {int(texts[row]) for row in positives[query]}
        candidates = [row for row in ranking[query].tolist() if row >= 0 and int(texts[row]) not in relevant_texts]
        wanted = sorted(candidates, key=lambda row: key_of(seed, episode, query, row))[:count]
        assert drawn[query].tolist() == wanted + [-1] * (count - len(wanted))


@settings(deadline=None, max_examples=40)
@given(collections(), st.integers(1, QUERIES - 1))
def test_the_draw_does_not_depend_on_the_number_of_processes(collection, cut):
    ranking, positives, texts = collection
    whole = draw(np.arange(QUERIES), ranking, judge(positives), texts, 6, seed=1, episode=2)
    parts = [
        draw(np.arange(QUERIES)[part], ranking[part], judge(positives), texts, 6, seed=1, episode=2)
        for part in (slice(0, cut), slice(cut, None))
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_draw_does_not_depend_on_the_order_of_equal_rank_candidates_only_on_which_they_are():
    ranking = np.arange(DEPTH)[None]
    texts = np.arange(PASSAGES, dtype=np.uint64)
    one = draw(np.zeros(1, int), ranking, NO_QRELS, texts, 5, seed=3, episode=0)
    other = draw(np.zeros(1, int), ranking[:, ::-1].copy(), NO_QRELS, texts, 5, seed=3, episode=0)
    assert np.array_equal(one, other)


def test_seed_episode_and_query_each_change_the_draw():
    ranking = np.tile(np.arange(PASSAGES), (2, 1))
    texts = np.arange(PASSAGES, dtype=np.uint64)
    base = draw(np.array([0, 1]), ranking, NO_QRELS, texts, 10, seed=1, episode=1)
    assert not np.array_equal(base[0], base[1])
    for seed, episode in ((2, 1), (1, 2)):
        other = draw(np.array([0, 1]), ranking, NO_QRELS, texts, 10, seed=seed, episode=episode)
        assert not np.array_equal(other, base)


def test_every_candidate_is_drawn_equally_often():
    queries, candidates, count = 20_000, 20, 5
    ranking = np.tile(np.arange(candidates), (queries, 1))
    texts = np.arange(candidates, dtype=np.uint64)
    drawn = draw(np.arange(queries), ranking, NO_QRELS, texts, count, seed=0, episode=0)
    frequency = np.bincount(drawn.ravel(), minlength=candidates)
    expected = queries * count / candidates
    # Each frequency is hypergeometric with standard deviation 61; 5 of them is a chance of 1 in 100,000.
    assert abs(frequency - expected).max() < 5 * np.sqrt(expected * (1 - count / candidates))


@settings(deadline=None, max_examples=40)
@given(collections(), st.integers(1, 7), st.integers(1, 13), st.integers(0, 4))
def test_every_negative_is_dealt_exactly_once_and_passes_differ_by_one_at_most(collection, passes, count, episode):
    ranking, positives, texts = collection
    negatives = draw(np.arange(QUERIES), ranking, judge(positives), texts, count, seed=0, episode=episode)
    clusters = np.arange(QUERIES) % 3
    dealt = {query: [] for query in range(QUERIES)}
    sizes = {query: [] for query in range(QUERIES)}
    rows, qrels = np.arange(QUERIES), judge(positives)
    scores = scores_of(rows[:, None], negatives), scores_of(*relevant_pairs(qrels, 0, QUERIES))
    for number, lines in enumerate(
        deal_passes(rows, negatives, qrels, clusters, passes, seed=0, episode=episode, scores=scores)
    ):
        passages = np.column_stack([lines.positive_rows, lines.negatives])
        assert np.array_equal(lines.scores, scores_of(lines.query_rows[:, None], passages))
        order = sorted(range(QUERIES), key=lambda query: key_of(0, episode, query, SHUFFLE + number))
        assert lines.query_rows.tolist() == order
        turn = episode * passes + number
        assert lines.positive_rows.tolist() == [positives[q][turn % len(positives[q])] for q in order]
        assert np.array_equal(lines.clusters, lines.query_rows % 3)
        for query, row in zip(lines.query_rows, lines.negatives, strict=True):
            dealt[query] += row[row >= 0].tolist()
            sizes[query].append(int((row >= 0).sum()))
    for query in range(QUERIES):
        assert sorted(dealt[query]) == sorted(negatives[query][negatives[query] >= 0].tolist())
        assert max(sizes[query]) - min(sizes[query]) <= 1


@settings(deadline=None, max_examples=40)
@given(collections(), st.integers(1, 7), st.integers(1, 13), st.integers(1, 6), st.booleans())
def test_blocks_hold_queries_of_one_cluster_and_deal_what_is_dealt_without_them(
    collection, passes, count, together, clustered
):
    ranking, positives, texts = collection
    negatives = draw(np.arange(QUERIES), ranking, judge(positives), texts, count, seed=0, episode=1)
    clusters, rows, qrels = np.arange(QUERIES) % 3 if clustered else None, np.arange(QUERIES), judge(positives)
    scores = scores_of(rows[:, None], negatives), scores_of(*relevant_pairs(qrels, 0, QUERIES))
    dealing = {"seed": 0, "episode": 1, "scores": scores}
    plain = deal_passes(rows, negatives, qrels, clusters, passes, **dealing)
    blocked = deal_passes(rows, negatives, qrels, clusters, passes, queries_together=together, **dealing)
    following = 0
    for expected, lines in zip(plain, blocked, strict=True):
        order, kept = np.argsort(lines.query_rows), (expected.negatives >= 0).any(axis=1)
        expected_order = np.flatnonzero(kept)[np.argsort(expected.query_rows[kept])]
        for name, column in vars(expected).items():  # the same lines, in another order
            if column is not None:
                assert np.array_equal(getattr(lines, name)[order], column[expected_order]), name
        sizes = {}
        for block in np.unique(lines.blocks).tolist():
            assert block == following
            own = lines.query_rows[lines.blocks == block] % 3 if clustered else np.zeros(sum(lines.blocks == block))
            assert len(set(own.tolist())) == 1
            sizes.setdefault(own[0], []).append(len(own))
            following += 1
        assert (np.diff(lines.blocks) >= 0).all()
        for of_cluster in sizes.values():  # all but one are full
            *full, last = sorted(of_cluster, reverse=True)
            assert set(full) <= {together}
            assert 0 < last <= together


def test_blocks_of_each_pass_and_episode_are_others_and_stand_in_another_order():
    rows, clusters = np.arange(400), np.arange(400) % 2
    positives = {query: np.zeros(1, int) for query in rows.tolist()}
    partitions, orders = [], []
    for episode in range(2):
        settings = {"seed": 0, "episode": episode, "queries_together": 4}
        for lines in deal_passes(rows, np.zeros((400, 2), int), judge(positives), clusters, 2, **settings):
            partitions.append({frozenset(block) for block in np.split(lines.query_rows, 100)})
            orders.append(tuple(lines.clusters))
            changes = (np.diff(lines.clusters[::4]) != 0).sum()
            assert 30 < changes < 70, "blocks of the clusters are shuffled"
    assert all(not (a & b) for i, a in enumerate(partitions) for b in partitions[:i])
    assert len(set(orders)) == 4


def test_a_query_with_several_positives_takes_them_in_turn_over_passes_and_episodes():
    positives = {0: np.array([3, 5, 8])}
    negatives = np.arange(10, 20)[None]
    taken = [
        int(lines.positive_rows[0])
        for episode in range(3)
        for lines in deal_passes(np.zeros(1, int), negatives, judge(positives), None, 2, seed=0, episode=episode)
    ]
    assert taken == [3, 5, 8, 3, 5, 8]


def test_passes_and_episodes_shuffle_the_queries_anew():
    rows = np.arange(200)
    negatives = np.zeros((200, 2), int)
    positives = {query: np.zeros(1, int) for query in rows.tolist()}
    orders = [
        tuple(lines.query_rows)
        for episode in range(2)
        for lines in deal_passes(rows, negatives, judge(positives), None, 2, seed=0, episode=episode)
    ]
    assert len(set(orders)) == 4


def test_random_keys_of_neighbours_share_no_bits_by_rule():
    keys = random_keys(1, 2, np.arange(1000)[:, None], np.arange(50))
    bits = np.unpackbits(keys.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.005
    assert len(np.unique(keys)) == keys.size


def test_no_negative_at_all_is_an_error_and_one_is_enough():
    ranking, texts = np.array([[0, 1], [1, 0]]), np.zeros(2, np.uint64)
    qrels = judge({0: np.array([0]), 1: np.array([1])})
    none = draw(np.arange(2), ranking, qrels, texts, 3, seed=0, episode=0)
    with pytest.raises(InputError, match="--topk_training"):
        check_candidates(none, 2)
    texts[1] = 1
    check_candidates(draw(np.arange(2), ranking, qrels, texts, 3, seed=0, episode=0), 2)


def test_given_negatives_take_the_place_of_the_ranking_of_queries_that_have_some():
    qrels = Qrels.of(
        [(0, 3, 1), (0, 7, 0), (0, 5, -1), (2, 1, 0), (3, 4, 2), (5, 8, 0), (5, 9, 1), (5, 2, 0), (5, 6, 0)]
    )
    ranked, scores = np.arange(12).reshape(6, 2) + 100, np.float32(np.arange(12).reshape(6, 2)) / 8

    def score(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        return np.float32(queries * 10 + passages)

    def given_of(first: int, last: int) -> list[dict[int, float]]:
        """Each query's candidates with their scores."""
        share = np.arange(first, last), ranked[first:last], scores[first:last]
        rows, found = given_negatives(*share, qrels, score)
        assert ((rows < 0) == np.isneginf(found)).all()
        return [
            dict(zip(row[row >= 0].tolist(), of[row >= 0].tolist(), strict=True))
            for row, of in zip(rows, found, strict=True)
        ]

    expected = [
        *({5: 5, 7: 7}, {102: 0.25, 103: 0.375}, {1: 21}, {106: 0.75, 107: 0.875}, {108: 1, 109: 1.125}),
        {2: 52, 6: 56, 8: 58},
    ]
    assert given_of(0, 6) == expected
    assert given_of(0, 2) + given_of(2, 5) + given_of(5, 6) == expected, "whatever queries a process has"
    check_given(qrels)
    with pytest.raises(InputError, match="no passage of the collection is judged not relevant"):
        check_given(Qrels.of([(0, 3, 1)]))
