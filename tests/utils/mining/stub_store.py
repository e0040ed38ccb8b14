"""What mining asks of a token store, of ids and hashes alone."""

from types import SimpleNamespace

import numpy as np


class StubStore:
    """Texts with these `ids` and `hashes`, of BEIR's layout, where a query may be a passage."""

    meta = SimpleNamespace(source_file="corpus.jsonl")

    def __init__(self, ids: list[str], hashes: np.ndarray) -> None:
        self.iter_ids, self.row_hashes = (lambda: iter(ids)), (lambda: hashes)
        self._count = len(ids)

    def __len__(self) -> int:
        return self._count


def unlike(queries: int, texts: np.ndarray) -> tuple[StubStore, StubStore]:
    """So many queries, all unlike and none of them a passage, and passages of these hashes, uint64 (passages,)."""
    hashes = np.uint64(2**60) + np.arange(queries, dtype=np.uint64)
    of_queries = StubStore([f"q{row}" for row in range(queries)], hashes)
    return of_queries, StubStore([f"p{row}" for row in range(len(texts))], texts)
