"""Rankings of passage rows: in which order, and where they are cut."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from utils.runtime.logs import say
from utils.stores.qrels import Qrels
from utils.stores.trec import encode_id


class Ranking(NamedTuple):
    """`rows` int64 and `scores` float32, (queries, k), best first; padded with -1 and -inf at the end of a line."""

    rows: np.ndarray
    scores: np.ndarray


def final_ranking(
    rows: np.ndarray,
    scores: np.ndarray,
    depth: int,
    own: np.ndarray,
    qrels: Qrels,
    ids_of: Callable[[np.ndarray], Sequence[str]],
) -> Ranking:
    """The ranking that is measured and written: the first `depth` of each line, in trec_eval's order.

    `rows` int64 and `scores` float32 are (queries, k), best first, k > `depth` where as many passages are wanted in
    every line. Of equal scores at the cut, those stay that come first here. `ids_of` gives the ids of passage rows,
    see `in_trec_order`.

    `own` int64 (queries,) is what `own_passages` gives: that passage is left out of the query's ranking, as in BEIR's
    own evaluation. Where it is judged relevant to the query, it is another text (queries and passages were numbered
    apart) and stays, which is said.
    """
    answers = (qrels.relevance > 0) & (qrels.passage_rows == own[qrels.query_rows])
    if answers.any():
        say(
            f"{answers.sum():,} of {len(own):,} queries are judged relevant to the passage of their own id: it is no "
            "copy of the query there and stays in the ranking; elsewhere it is left out"
        )
        own = own.copy()
        own[qrels.query_rows[answers]] = -1
    left_out = (rows == own[:, None]) | (rows < 0)
    order = np.argsort(left_out, axis=1, kind="stable")[:, :depth]
    left_out = np.take_along_axis(left_out, order, axis=1)
    ranking = Ranking(
        np.where(left_out, -1, np.take_along_axis(rows, order, axis=1)),
        np.where(left_out, -np.inf, np.take_along_axis(scores, order, axis=1)).astype(np.float32),
    )
    return in_trec_order(ranking, ids_of)


def in_trec_order(ranking: Ranking, ids_of: Callable[[np.ndarray], Sequence[str]]) -> Ranking:
    """The ranking as trec_eval sorts it: by score downwards, then by id, as run.trec has it, downwards by bytes.

    `ids_of` gives the ids of passage rows, int64 (n,) in ascending order: asked for are those that share a score with
    another one, mostly a few of millions. UTF-8 orders by code points, as Python's strings do. Raises ValueError
    where a line's scores rise.
    """
    rows, scores = ranking
    ranked = rows[:, 1:] >= 0
    if (ranked & (scores[:, 1:] > scores[:, :-1])).any():
        raise ValueError("a ranking is best first, and here a score is above the one before")
    equal = ranked & (scores[:, 1:] == scores[:, :-1])
    lines = np.flatnonzero(equal.any(axis=1))
    if not len(lines):
        return ranking
    part, part_scores, equal = rows[lines], scores[lines], equal[lines]
    tied = np.zeros(part.shape, dtype=bool)
    tied[:, 1:] |= equal
    tied[:, :-1] |= equal
    members, place = np.unique(part[tied], return_inverse=True)
    names = list(map(encode_id, ids_of(members)))
    by_id = sorted(range(len(names)), key=names.__getitem__, reverse=True)
    turn = np.empty(len(members), dtype=np.int64)
    turn[by_id] = np.arange(len(members))
    turns = np.zeros(part.shape, dtype=np.int64)
    turns[tied] = turn[place]
    order = np.lexsort((turns, -part_scores), axis=1)  # what is not tied has one place, whatever its turn
    rows, scores = rows.copy(), scores.copy()
    rows[lines] = np.take_along_axis(part, order, axis=1)
    scores[lines] = np.take_along_axis(part_scores, order, axis=1)
    return Ranking(rows, scores)
