"""From token rows to padded batches, without a Python object a token.

A store's row is one sequence, or, for encoders that cut documents, several sequences of at most `chunk_length`
tokens. `Sequences` is that view: new offsets over the same flat tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.episode import Episode
from utils.token_store import TokenStore

PAD_TO_MULTIPLE = 8


@dataclass
class TokenBatch:
    """Padded sequences: `input_ids` and `attention_mask`, int64 (sequences, length)."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass
class TripletBatch:
    """B triplets over distinct sequences.

    `query` (B,) indexes rows of `queries`; `positive` and `negative` (B, C) index rows of `passages`: the C
    sequences that a passage was cut into, where a shorter passage repeats its first one. `clusters` (B,) int64,
    -1 for a triplet that only keeps its process company and counts for nothing; `weights` (B,) float32.
    `query_clusters` and `passage_clusters` are those of the sequences, ascending; they stay on the CPU.
    """

    queries: TokenBatch
    passages: TokenBatch
    query: Tensor
    positive: Tensor
    negative: Tensor
    clusters: Tensor
    weights: Tensor
    query_clusters: Tensor
    passage_clusters: Tensor

    def to(self, device: torch.device) -> "TripletBatch":
        on_cpu = {"query_clusters": self.query_clusters, "passage_clusters": self.passage_clusters}
        return TripletBatch(**{name: value.to(device) for name, value in vars(self).items()} | on_cpu)


class Sequences:
    """The sequences of a token store: its rows, or their chunks of `chunk_length` tokens.

    Attributes: `offsets` int64 (sequences + 1,) into the store's tokens; `row_starts` int64 (rows + 1,), row i is
    sequences row_starts[i] … row_starts[i + 1] - 1. An empty row is one sequence without tokens.
    """

    def __init__(self, store: TokenStore, chunk_length: int | None = None) -> None:
        self.tokens = store.tokens
        self.pad_token_id = store.meta.pad_token_id
        if chunk_length is None:
            self.offsets = store.offsets
            self.row_starts = np.arange(len(store) + 1)
            return
        counts = np.maximum(1, -(-store.lengths // chunk_length))
        self.row_starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(self.row_starts[-1]) - np.repeat(self.row_starts[:-1], counts)
        starts = np.repeat(store.offsets[:-1], counts) + within * chunk_length
        self.offsets = np.append(starts, store.offsets[-1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """The row that each sequence belongs to, int64."""
        return np.repeat(np.arange(len(self.row_starts) - 1), np.diff(self.row_starts))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The sequences of each row, int64 (rows, C); a row with fewer than C repeats its first one."""
        counts = self.row_starts[rows + 1] - self.row_starts[rows]
        columns = np.arange(counts.max(initial=1))
        return self.row_starts[rows, None] + np.where(columns < counts[:, None], columns, 0)

    def pad(self, sequences: np.ndarray) -> TokenBatch:
        """Gathers sequences into one padded batch, its length rounded up to a multiple of 8."""
        starts = self.offsets[sequences]
        lengths = self.offsets[sequences + 1] - starts
        width = max(1, -(-int(lengths.max(initial=0)) // PAD_TO_MULTIPLE)) * PAD_TO_MULTIPLE
        columns = np.arange(width)
        mask = columns < lengths[:, None]  # sequences, width
        input_ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        input_ids[mask] = self.tokens[(starts[:, None] + columns)[mask]]
        return TokenBatch(torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)))


def make_triplet_batch(
    episode: Episode, triplets: np.ndarray, queries: Sequences, passages: Sequences
) -> TripletBatch:
    """Builds the batch of these triplets (their numbers in the mined file's order).

    Each distinct text stands in it once; a passage that serves queries of two clusters stands in it twice, so that
    every sequence belongs to one cluster. Sequences are in the order of their clusters.
    """
    lines = episode.line_of(triplets)
    clusters = episode.clusters[lines]
    query_rows, query_clusters, query = _distinct(episode.query_rows[lines], clusters)
    texts = np.concatenate([episode.positive_rows[lines], episode.negative_rows[triplets]])
    rows, row_clusters, text = _distinct(texts, np.concatenate([clusters, clusters]))
    sequences = passages.of_rows(rows)  # distinct texts, C
    flat, passage_clusters, position = _distinct(sequences.ravel(), np.repeat(row_clusters, sequences.shape[1]))
    position = torch.from_numpy(position.reshape(sequences.shape)[text])  # 2 B, C
    return TripletBatch(
        queries=queries.pad(queries.row_starts[query_rows]),
        passages=passages.pad(flat),
        query=torch.from_numpy(query),
        positive=position[: len(triplets)],
        negative=position[len(triplets) :],
        clusters=torch.from_numpy(clusters),
        weights=torch.from_numpy(episode.weights[lines]),
        query_clusters=torch.from_numpy(query_clusters),
        passage_clusters=torch.from_numpy(passage_clusters),
    )


def _distinct(rows: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct (row, cluster) pairs by cluster, then row: rows, clusters, and which of them each given one is."""
    most = int(rows.max(initial=0)) + 1
    pairs, where = np.unique(clusters * most + rows, return_inverse=True)
    return pairs % most, pairs // most, where


def take_step(position: int, triplets: int, batch_size: int, accumulation: int) -> tuple[list[np.ndarray], int]:
    """This process's triplets of the step that starts at `position`, a list a batch, and the next step's position.

    A step takes the next `batch_size · accumulation · processes` triplets of the mined order. At the end of the
    file it takes what is left, shared out evenly, and the next step begins at the front.
    """
    size, rank = distributed.world_size(), distributed.rank()
    stop = min(position + batch_size * accumulation * size, triplets)
    parts = np.array_split(np.arange(position, stop), size * accumulation)
    return parts[rank * accumulation : (rank + 1) * accumulation], stop % triplets


def make_step_batches(
    episode: Episode, parts: list[np.ndarray], queries: Sequences, passages: Sequences
) -> list[TripletBatch]:
    """The batches of `take_step`. A process with no triplet left gets one that counts for nothing (cluster -1)."""
    batches = []
    for part in parts:
        batch = make_triplet_batch(episode, part if len(part) else np.zeros(1, np.int64), queries, passages)
        if not len(part):
            for clusters in (batch.clusters, batch.query_clusters, batch.passage_clusters):
                clusters.fill_(-1)
        batches.append(batch)
    return batches
