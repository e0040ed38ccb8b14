"""Rankings of passage rows: where they are cut, and when a query's own passage does not count."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ranking(NamedTuple):
    """`rows` int64 and `scores` float32, (queries, k), best first; padded with -1 and -inf at the end of a line."""

    rows: np.ndarray
    scores: np.ndarray


def queries_may_be_passages(collection_file: str) -> bool:
    """Whether a query and a passage of one id are the same text, by the name of the file that the passages are from.

    So in BEIR's layout (corpus.jsonl): ArguAna's queries are passages of its collection. MS MARCO numbers queries and
    passages each by themselves; that two numbers are equal says nothing there.
    """
    return collection_file.removesuffix(".gz") == "corpus.jsonl"


def cut_at(rows: np.ndarray, scores: np.ndarray, depth: int) -> Ranking:
    """The first `depth` of each line; `rows` and `scores` are (queries, k), best first."""
    return Ranking(rows[:, :depth], scores[:, :depth])


def leave_out_self_matches(
    rows: np.ndarray, scores: np.ndarray, query_ids: Sequence[str], passage_ids: Sequence[str], depth: int
) -> Ranking:
    """The first `depth` of each line without the passage that has the query's own id.

    `rows` and `scores` are (queries, k), best first, k > `depth` where as many passages are wanted in every line.
    """
    row_of_id = {passage_id: row for row, passage_id in enumerate(passage_ids)}
    own = np.array([row_of_id.get(query_id, -1) for query_id in query_ids], dtype=np.int64)
    left_out = (rows == own[:, None]) | (rows < 0)
    order = np.argsort(left_out, axis=1, kind="stable")[:, :depth]
    left_out = np.take_along_axis(left_out, order, axis=1)
    return Ranking(
        np.where(left_out, -1, np.take_along_axis(rows, order, axis=1)),
        np.where(left_out, -np.inf, np.take_along_axis(scores, order, axis=1)).astype(np.float32),
    )
