"""From the rankings of all training queries to their negatives, with the scores of these and of the positives.

What `utils.mining.negatives` draws for a block of queries is gathered here over blocks and processes; which passages
cannot be a query's negatives, whatever they score, is decided before: those that are the query itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from utils.mining.negatives import draw_negatives, given_negatives, relevant_pairs
from utils.mining.rankings import own_passages
from utils.runtime import distributed
from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenStore


@dataclass(frozen=True)
class Drawn:
    """Negatives of the training queries, padded with -1 and -inf: `rows` int64, `scores` float32, (queries, count).

    `positive_scores` float32 (judgments,) are those of the relevant judgments, in their order.
    """

    rows: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray


def draw_for_all(
    rankings: Iterable[tuple[int, np.ndarray, np.ndarray]],
    queries: TokenStore,
    passages: TokenStore,
    qrels: Qrels,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    count: int,
    *,
    given: bool,
    seed: int,
    episode: int,
) -> Drawn:
    """Up to `count` negatives a query: of all queries on the main process, of its share elsewhere.

    `rankings` as `utils.mining.search.search_rows` gives them; `score` as `given_negatives` takes it. A passage with
    the query's own id, where these are of one kind (`own_passages`), or with the query's very tokens is the query and
    no negative of it. `given`: the passages that are judged not relevant take the place of the ranking.
    """
    own = own_passages(queries.iter_ids(), passages.iter_ids(), passages.meta.source_file)
    texts, hashes = queries.row_hashes(), passages.row_hashes()
    parts = []
    for first, scores, rows in rankings:
        query_rows = first + np.arange(len(rows))
        itself = (rows == own[query_rows, None]) | (hashes[rows] == texts[query_rows, None])
        ranking = query_rows, np.where(itself, -1, rows), scores
        if given:
            ranking = query_rows, *given_negatives(*ranking, qrels, score)
        negatives = draw_negatives(*ranking, qrels, hashes, count, seed=seed, episode=episode)
        positives = relevant_pairs(qrels, first, first + len(rows))
        parts.append((*negatives, score(*positives)))
    return Drawn(*(distributed.gather_rows(np.concatenate(part)) for part in zip(*parts, strict=True)))
