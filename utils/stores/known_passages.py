"""Which passages are no negatives of a training query, whatever they score: what is relevant to it, and itself."""

from collections.abc import Iterable

import numpy as np

from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenStore


def own_passages(query_ids: Iterable[str], passage_ids: Iterable[str], collection_file: str) -> np.ndarray:
    """The row of the passage that has a query's own id, int64 (queries,); -1 where there is none.

    In BEIR's layout (the passages are from a `collection_file` corpus.jsonl) such a passage may be the query itself:
    ArguAna's queries are passages of its collection. MS MARCO numbers queries and passages each by themselves: there
    it is none, whatever its number.
    """
    if collection_file.removesuffix(".gz") != "corpus.jsonl":
        return np.full(sum(1 for _ in query_ids), -1, dtype=np.int64)
    queries = {query_id: row for row, query_id in enumerate(query_ids)}
    own = np.full(len(queries), -1, dtype=np.int64)
    for row, passage_id in enumerate(passage_ids):
        if passage_id in queries:
            own[queries[passage_id]] = row
    return own


class KnownPassages:
    """What is known of queries and passages: by judgments, texts and ids, at 16 bytes a passage and 32 a query.

    A passage is no negative of a query if it is judged relevant to it, if its tokens are those of such a passage or
    of the query, or if it is the query's own (`own_passages`). Judgments are of a query's text: queries of the same
    tokens share theirs, whatever their ids.
    """

    def __init__(self, queries: TokenStore, passages: TokenStore, qrels: Qrels) -> None:
        """`qrels` are those of `queries`, of passages that the collection holds."""
        relevant = qrels.only(qrels.relevance > 0)
        self._passage_hashes, self._query_hashes = passages.row_hashes(), queries.row_hashes()
        texts, self._text = np.unique(self._query_hashes, return_inverse=True)
        judged = self._text[relevant.query_rows]
        order = np.argsort(judged, kind="stable")
        self._relevant_hashes = self._passage_hashes[relevant.passage_rows[order]]
        self._first = np.searchsorted(judged[order], np.arange(len(texts) + 1))
        self._own = own_passages(queries.iter_ids(), passages.iter_ids(), passages.meta.source_file)

    def are_itself(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """Which passages are the query: its own, or of its very tokens; bool (Q, k), of int64 (Q,) and (Q, k)."""
        itself = passage_rows == self._own[query_rows, None]
        return itself | (self._passage_hashes[passage_rows] == self._query_hashes[query_rows, None])

    def are_equal(self, passage_rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which passages have the tokens of these others; bool, of int64 rows of shapes that broadcast."""
        return self._passage_hashes[passage_rows] == self._passage_hashes[others]

    def first_of_each_text(self, passage_rows: np.ndarray) -> np.ndarray:
        """Of passages with equal tokens the lowest row: int64, ascending."""
        rows = np.unique(passage_rows)
        return np.sort(rows[np.unique(self._passage_hashes[rows], return_index=True)[1]])

    def are_relevant(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
        """Which passages have the tokens of one that is relevant to the query; bool (Q, k), of int64 (Q,) and (Q, k).

        It takes a turn for each positive of the query that has most of them.
        """
        hashes, relevant = self._passage_hashes[passage_rows], np.zeros(passage_rows.shape, dtype=bool)
        texts = self._text[query_rows]
        first = self._first[texts]
        counts = self._first[texts + 1] - first
        for turn in range(counts.max(initial=0)):
            lines = np.flatnonzero(counts > turn)
            relevant[lines] |= hashes[lines] == self._relevant_hashes[first[lines] + turn, None]
        return relevant
