"""Exact search: the k passages of the largest inner product, for every query.

Blocks of passages stream by; only the best k of each query are kept. Equal scores are ordered by row, the lower
one first, and also at the cut, so that the result does not depend on block sizes or on the number of processes.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.batching import Sequences
from utils.embedding_store import EmbeddingMatrix

PASSAGE_BLOCK = 65_536
SCORE_BLOCK = 2**26  # scores held at once: 256 MiB


def best(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each line by (score descending, row ascending): scores and rows, each (Q, min(k, n)).

    `scores` (Q, n) float32; `rows` int64 (n,) or (Q, n), ascending along each line for equal scores not required.
    """
    rows = rows.expand_as(scores)
    k = min(k, scores.shape[1])
    if k == 0:
        return scores[:, :0], rows[:, :0]
    top, index = scores.topk(k, dim=1)
    top_rows = rows.gather(1, index)
    # topk may keep any of several equal scores at the cut: such lines, seldom any, are sorted in full.
    crowded = (scores >= top[:, -1:]).sum(1) > k
    if crowded.any():
        top[crowded], top_rows[crowded] = _sorted(scores[crowded], rows[crowded], k)
    return _sorted(top, top_rows, k)


def _sorted(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lines sorted by (score descending, row ascending), cut after k."""
    by_row = rows.argsort(dim=1, stable=True)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, by_score), rows.gather(1, by_score)


@torch.inference_mode()
def search(
    queries: np.ndarray, passages: EmbeddingMatrix, first: int, last: int, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of passage rows first … last - 1 for each query: scores float32 and rows int64, (Q, min(k, n)).

    `queries` float32 (Q, D). Products run in float32.
    """
    query = torch.from_numpy(np.array(queries)).to(device)
    top = query.new_empty(len(query), 0)
    top_rows = torch.empty(len(query), 0, dtype=torch.int64, device=device)
    for start in range(first, last, PASSAGE_BLOCK):
        stop = min(start + PASSAGE_BLOCK, last)
        block = torch.from_numpy(np.array(passages.rows(start, stop))).to(device)
        block_rows = torch.arange(start, stop, device=device)
        lines = max(1, SCORE_BLOCK // len(block))
        parts = [best(part @ block.T, block_rows, k) for part in query.split(lines)]
        scores = torch.cat([top, torch.cat([part[0] for part in parts])], dim=1)
        rows = torch.cat([top_rows, torch.cat([part[1] for part in parts])], dim=1)
        top, top_rows = best(scores, rows, k)
    return top.cpu().numpy(), top_rows.cpu().numpy()


def search_together(
    queries: EmbeddingMatrix, passages: EmbeddingMatrix, k: int, device: torch.device, exchange: Path
) -> tuple[int, np.ndarray, np.ndarray]:
    """Searches all queries with all processes; each gets the merged result of its own share of the queries.

    Every process searches its share of the passages, leaves its k best in the folder `exchange` (one that all
    processes see), and merges what all have found for its queries. Returns the number of its first query, and the
    scores float32 and passage rows int64, (queries of the share, min(k, passages)). All processes must call it.
    """
    rank, size = distributed.rank(), distributed.world_size()
    shares = np.linspace(0, len(passages), size + 1).astype(np.int64)
    scores, rows = search(queries.rows(0, len(queries)), passages, *shares[rank : rank + 2].tolist(), k, device)
    if size == 1:
        return 0, scores, rows
    exchange.mkdir(parents=True, exist_ok=True)
    np.save(exchange / f"scores-{rank}.npy", scores)
    np.save(exchange / f"rows-{rank}.npy", rows)
    distributed.barrier()
    first, last = np.linspace(0, len(queries), size + 1).astype(np.int64)[rank : rank + 2].tolist()
    parts = [
        np.concatenate(
            [np.load(exchange / f"{name}-{r}.npy", mmap_mode="r")[first:last] for r in range(size)], axis=1
        )
        for name in ("scores", "rows")
    ]
    scores, rows = best(*map(torch.from_numpy, parts), k)
    distributed.barrier()
    distributed.on_main(lambda: shutil.rmtree(exchange))
    return first, scores.numpy(), rows.numpy()


def search_rows(
    queries: EmbeddingMatrix,
    passages: EmbeddingMatrix,
    sequences: Sequences,
    k: int,
    device: torch.device,
    exchange: Path,
) -> tuple[int, np.ndarray, np.ndarray]:
    """As `search_together`, with passages that may be several sequences, of which the best one scores.

    Returns rows of the token store rather than of the matrix, (queries of the share, min(k, rows)).
    """
    counts = np.diff(sequences.row_starts)
    k = min(k, len(counts))
    most = int(counts.max(initial=1))  # k · most sequences hold at least k rows
    first, scores, found = search_together(queries, passages, k * most, device, exchange)
    if most == 1:
        return first, scores, found
    return first, *best_chunks(scores, found, sequences.rows, k)


def best_chunks(
    scores: np.ndarray, sequences: np.ndarray, row_of: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """From the best sequences of each query to its best rows, a row scoring as its best sequence (ANCE MaxP).

    `scores` and `sequences` (Q, n), best first; `row_of` int64 (sequences,). Returns (Q, k), where a query with
    fewer rows is padded with -inf and -1.
    """
    top = np.full((len(scores), k), -np.inf, dtype=np.float32)
    top_rows = np.full((len(scores), k), -1, dtype=np.int64)
    for i, rows in enumerate(row_of[sequences]):
        chosen = np.sort(np.unique(rows, return_index=True)[1])[:k]
        top[i, : len(chosen)], top_rows[i, : len(chosen)] = scores[i, chosen], rows[chosen]
    return top, top_rows
