"""How good a ranking is: nDCG, MAP, MRR and recall, as `trec_eval -c` gives them, by ir-measures.

ir-measures hands the counting to trec_eval's own code, so that the numbers are those of the literature. Two things
are done here. Of scores that are equal, ir-measures' providers each make an order of their own (that of RR@10 another
one than trec_eval's), so they are given no scores but ranks, negated: the order is the ranking's, which
`utils.mining.rankings.final_ranking` makes trec_eval's. And none of the measures depends on which passages stand in a
ranking, only on the ranks that the relevant ones hold: every query's ranking is named by its ranks, and 6,980 queries
of 1,000 passages share one list of names instead of 7 million strings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, nDCG

from utils.runtime.errors import InputError
from utils.stores.episode import METRICS
from utils.stores.qrels import Qrels

MEASURES = dict(zip(METRICS, (nDCG @ 10, AP @ 10, RR @ 10, RR, R @ 100, R @ 1000), strict=True))

# Judged pairs looked up at once: 1,000 ranks of 8 bytes for each are 64 MiB.
PAIRS_A_BLOCK = 8_192


class Evaluation(NamedTuple):
    """`means` of each measure over the judged queries; `values` a query, float64 (queries,), nan if not judged."""

    means: dict[str, float]
    values: dict[str, np.ndarray]

    @property
    def queries(self) -> int:
        """How many queries the means are over."""
        return int(np.isfinite(next(iter(self.values.values()))).sum())


def evaluate_run(ranked_rows: np.ndarray, qrels: Qrels, measures: Sequence[str] = tuple(MEASURES)) -> Evaluation:
    """Evaluates a ranking of passage rows, best first, against the judgments.

    `ranked_rows` is int64 (queries, k); row i ranks for query row i, and a ranking of fewer than k passages is padded
    with -1 at its end. `measures` are keys of `MEASURES`:

    - ndcg@10: gain = grade, discount = 1 / log2(rank + 1), ideal over all relevant passages (as trec_eval and BEIR);
    - map@10: precision at each relevant rank up to 10, over the number of all relevant passages (not at most 10);
    - mrr@10: as MS MARCO's own script, 1 / rank of the first relevant passage, 0 beyond rank 10; mrr without the cut;
    - recall@c: relevant passages among the first c (or the first k, where k < c) over all relevant ones.

    A passage is relevant where its grade is above 0; grades of 0 and below gain nothing. One that the collection
    lacks is never found: its row is in no ranking. A query without a relevant passage has nan and does not count; one
    with relevant passages and an empty ranking has 0 and counts. A mean is the correctly rounded sum of the values
    over their number: the order of the queries does not matter.

    Raises `InputError` where no query has a relevant passage, ValueError for a ranking that breaks the rules above.
    """
    ranking_lengths = _check_ranking(ranked_rows)
    relevant = qrels.relevance > 0
    if not relevant.any():
        raise InputError("no query has a relevant passage, so there is nothing to measure; check the qrels file")
    query_rows, grades = qrels.query_rows[relevant], qrels.relevance[relevant]
    if query_rows.max() >= len(ranked_rows):
        raise ValueError(f"a judgment of query row {query_rows.max()} for a ranking of {len(ranked_rows)} queries")
    ranks = _find_ranks(ranked_rows, query_rows, qrels.passage_rows[relevant])

    names = [str(rank) for rank in range(1, ranked_rows.shape[1] + 1)]
    judgments: dict[str, dict[str, int]] = {}
    for number, (query, rank, grade) in enumerate(zip(query_rows, ranks, grades, strict=True)):
        name = names[rank - 1] if rank else f"not ranked {number}"
        judgments.setdefault(str(query), {})[name] = int(grade)
    rankings = {
        length: {name: -float(rank) for rank, name in enumerate(names[:length])}
        for length in np.unique(ranking_lengths).tolist()
    }
    run = {query: rankings[ranking_lengths[int(query)]] for query in judgments}

    of_measure = {MEASURES[name]: name for name in measures}
    values = {name: np.full(len(ranked_rows), np.nan) for name in measures}
    for metric in ir_measures.iter_calc(list(of_measure), judgments, run):
        values[of_measure[metric.measure]][int(metric.query_id)] = metric.value
    means = {name: math.fsum(value[np.isfinite(value)]) / len(judgments) for name, value in values.items()}
    return Evaluation(means, values)


def _check_ranking(ranked_rows: np.ndarray) -> np.ndarray:
    """The length of each ranking, int64 (queries,); ValueError for a passage after padding or ranked twice."""
    if ranked_rows.ndim != 2 or ranked_rows.dtype.kind != "i":
        raise ValueError(f"a ranking is (queries, k) integers, not {ranked_rows.dtype} {ranked_rows.shape}")
    ranked = ranked_rows >= 0
    if (ranked[:, 1:] & ~ranked[:, :-1]).any():
        raise ValueError("a ranking has padding (-1) before a passage")
    ordered = np.sort(ranked_rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("a ranking holds a passage twice")
    return ranked.sum(axis=1)


def _find_ranks(ranked_rows: np.ndarray, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
    """The rank from 1 of passage j in the ranking of query j, int64 (pairs,); 0 where it is not ranked."""
    ranks = np.zeros(len(query_rows), dtype=np.int64)
    for start in range(0, len(query_rows), PAIRS_A_BLOCK):
        block = slice(start, start + PAIRS_A_BLOCK)
        found = ranked_rows[query_rows[block]] == passage_rows[block, None]  # pairs, k
        pair, column = np.nonzero(found)
        ranks[start + pair] = column + 1
    return ranks


def mean_by_cluster(values: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """The mean of `values` (queries,) within each cluster of queries, float64 (n_clusters,).

    `clusters` is int64 (queries,), in [0, n_clusters), or -1 for a query that is in none. Queries whose value is nan
    (not judged) do not count; a cluster without any other has nan.
    """
    if len(clusters) and (clusters.min() < -1 or clusters.max() >= n_clusters):
        raise ValueError(f"clusters {clusters.min()} to {clusters.max()} where there are {n_clusters}")
    judged = ~np.isnan(values) & (clusters >= 0)
    sums = np.bincount(clusters[judged], weights=values[judged], minlength=n_clusters)
    counts = np.bincount(clusters[judged], minlength=n_clusters)
    return np.divide(sums, counts, out=np.full(n_clusters, np.nan), where=counts > 0)
