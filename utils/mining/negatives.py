"""Hard negatives: drawn from what ranks high but is not relevant, and dealt into passes over the queries (ANCE).

Every draw is a function of (seed, episode, query, passage) alone, so that neither the number of processes nor the
order of the queries has a say in it. There is no generator with a state: each candidate gets a 64-bit key by a
hash of those four numbers, and the candidates of the lowest keys are drawn, which is a uniform draw without
replacement (counter-based random numbers; Salmon et al. 2011, mixing function SplitMix64 of Steele et al. 2014).
"""

from collections.abc import Callable, Iterator

import numpy as np

from utils.mining.filters import Sieve
from utils.runtime.errors import InputError
from utils.stores.episode import MinedLines
from utils.stores.known_passages import KnownPassages
from utils.stores.qrels import Qrels

LAST = np.uint64(2**64 - 1)
SHUFFLE = 0x5B0FF1E  # stands in the place of a passage when queries are shuffled
BLOCK_CANDIDATES = 2**18  # looked at together: some ten arrays of 2 MiB


def random_keys(*numbers: np.ndarray | int) -> np.ndarray:
    """A 64-bit hash of each combination of whole numbers (broadcast together), uint64."""
    keys = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number in numbers:
            keys = keys + np.uint64(0x9E3779B97F4A7C15) + np.asarray(number).astype(np.uint64)
            keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            keys = keys ^ (keys >> np.uint64(31))
    return keys


def check_candidates(negatives: np.ndarray, topk: int) -> None:
    """`InputError` where no query has a single negative, as `draw_negatives` gives them: nothing to train on."""
    if not (negatives >= 0).any():
        raise InputError(
            f"every one of the {topk} passages ranked a query is relevant to it or equals a relevant one in text, so "
            "there is no negative to train on; rank more of them (--topk_training), or see whether train-qrel.tsv "
            "and the collection are the right ones"
        )


def check_given(qrels: Qrels) -> None:
    """`InputError` where no passage is judged not relevant, so that there are no `given_negatives`."""
    if not (qrels.relevance <= 0).any():
        raise InputError(
            "no passage of the collection is judged not relevant (grade 0) in train-qrel.tsv, so that no negatives "
            "are given; leave out --given_negatives"
        )


def given_negatives(
    query_rows: np.ndarray,
    ranked_rows: np.ndarray,
    ranked_scores: np.ndarray,
    qrels: Qrels,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """What is judged not relevant to each query, and its scores, in place of its ranking: int64, float32 (Q, most).

    Arguments and results are as those of `draw_negatives`, which takes the results as a ranking. A query without such
    judgments keeps its ranking. `score` gives the scores, float32 (n,), of pairs of query and passage rows, int64
    (n,).
    """
    given = qrels.only(qrels.relevance <= 0)
    first = np.searchsorted(given.query_rows, query_rows)
    counts = np.searchsorted(given.query_rows, query_rows, side="right") - first
    ranked = ranked_rows.shape[1]
    rows = np.full((len(query_rows), max(ranked, counts.max(initial=0))), -1, dtype=np.int64)
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    rows[:, :ranked] = np.where(counts[:, None] > 0, -1, ranked_rows)
    scores[:, :ranked] = np.where(counts[:, None] > 0, -np.inf, ranked_scores)
    line = np.repeat(np.arange(len(query_rows)), counts)
    place = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows[line, place] = given.passage_rows[np.repeat(first, counts) + place]
    scores[line, place] = score(query_rows[line], rows[line, place])
    return rows, scores


def draw_negatives(
    query_rows: np.ndarray,
    ranked_rows: np.ndarray,
    ranked_scores: np.ndarray,
    known: KnownPassages,
    count: int,
    *,
    seed: int,
    episode: int,
    sieve: Sieve | None = None,
    lowest: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` negatives a query from its ranking, and their scores in it: int64 and float32, (Q, count).

    They are padded with -1 and -inf on the right. `query_rows` int64 (Q,); `ranked_rows` int64 and `ranked_scores`
    float32, (Q, k), rows -1 where a ranking is shorter. What is `known` to be no negative of a query is excluded; of
    the rest, with a `sieve`, what its filters drop, for which each query's positive has the `lowest` score, float32
    (Q,). Queries are taken in blocks: beside its arguments and its result it needs the same memory for any number of
    them.
    """
    negatives = np.full((len(query_rows), count), -1, dtype=np.int64)
    scores = np.full(negatives.shape, -np.inf, dtype=np.float32)
    block_queries = max(1, BLOCK_CANDIDATES // max(1, ranked_rows.shape[1]))
    for start in range(0, len(query_rows), block_queries):
        block = slice(start, start + block_queries)
        ranked = ranked_rows[block]
        ranked = np.where(known.are_itself(query_rows[block], ranked), -1, ranked)
        excluded = (ranked < 0) | known.are_relevant(query_rows[block], ranked)
        if sieve is not None:
            excluded = ~sieve.leave(query_rows[block], ranked, ranked_scores[block], ~excluded, lowest[block])
        keys = random_keys(seed, episode, query_rows[block, None], ranked)
        keys[excluded] = LAST
        order = np.argsort(keys, axis=1, kind="stable")[:, :count]
        width = order.shape[1]
        negatives[block, :width] = np.take_along_axis(np.where(excluded, -1, ranked), order, axis=1)
        found = np.where(excluded, -np.inf, ranked_scores[block])
        scores[block, :width] = np.take_along_axis(found, order, axis=1)
    return negatives, scores


def relevant_pairs(qrels: Qrels, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The relevant judgments of query rows first … last - 1, in their order: query and passage rows, int64."""
    kept = qrels.only((qrels.relevance > 0) & (first <= qrels.query_rows) & (qrels.query_rows < last))
    return kept.query_rows, kept.passage_rows


def deal_passes(
    query_rows: np.ndarray,
    negatives: np.ndarray,
    qrels: Qrels,
    clusters: np.ndarray | None,
    passes: int,
    *,
    seed: int,
    episode: int,
    scores: tuple[np.ndarray, np.ndarray] | None = None,
    queries_together: int = 0,
) -> Iterator[MinedLines]:
    """Deals each query's negatives into passes over the queries, each pass in an order of its own.

    `negatives` as `draw_negatives` gives them; `clusters` int64 (Q,) or None; `scores` float32, if they are wanted
    beside the lines: of the negatives (Q, count), and of every relevant judgment in `qrels` (judgments,). Pass j gets
    the negatives j, j + passes, j + 2 passes … of every query: all are dealt, and a query's passes differ by one at
    most. A query with several positives takes them in turn from pass to pass and from episode to episode. Every query
    must have one (`utils.stores.qrels.check_positives`).

    With `queries_together` M, lines are grouped at random into blocks of M of one cluster (without clusters, of all);
    a cluster's last block of a pass may be shorter. Blocks stand in an order of their own in each pass.
    """
    relevant = qrels.only(qrels.relevance > 0)
    first = np.searchsorted(relevant.query_rows, query_rows)
    counts = np.searchsorted(relevant.query_rows, query_rows, side="right") - first
    assert counts.all(), "a query without a relevant passage"
    blocks_so_far = 0
    for number in range(passes):
        keys = random_keys(seed, episode, query_rows, SHUFFLE + number)
        order, blocks = np.argsort(keys, kind="stable"), None
        if queries_together:
            order = order[(negatives[order, number::passes] >= 0).any(axis=1)]  # the others have no line
            own = np.zeros_like(query_rows) if clusters is None else clusters
            order, blocks = _in_blocks(order, own, queries_together, keys)
            blocks, blocks_so_far = blocks + blocks_so_far, blocks_so_far + blocks.max(initial=-1) + 1
        positives = (first + (episode * passes + number) % counts)[order]
        of_pass = None
        if scores is not None:
            of_pass = np.column_stack([scores[1][positives], scores[0][order, number::passes]])
        yield MinedLines(
            query_rows=query_rows[order],
            positive_rows=relevant.passage_rows[positives],
            negatives=negatives[order, number::passes],
            clusters=None if clusters is None else clusters[order],
            blocks=blocks,
            scores=of_pass,
        )


def _in_blocks(order: np.ndarray, clusters: np.ndarray, size: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The queries in `order`, in blocks of `size` of one cluster: their new order, and the block of each.

    `order` int64 (n,), at random; `clusters` and `keys` are of all queries. A block stands where a key of its own
    says, made from that of its first query.
    """
    order = order[np.argsort(clusters[order], kind="stable")]
    of_cluster = clusters[order]
    place = np.arange(len(order)) - np.searchsorted(of_cluster, of_cluster)  # in its cluster
    first = np.flatnonzero(place % size == 0)
    lengths = np.diff(first, append=len(order))
    turn = np.argsort(random_keys(keys[order[first]]), kind="stable")
    starts = np.repeat(first[turn] - np.cumsum(lengths[turn]) + lengths[turn], lengths[turn])
    return order[starts + np.arange(len(order))], np.repeat(np.arange(len(turn)), lengths[turn])
