"""From token rows to packed batches, without padding and without a Python object a token.

A store's row is one sequence, or, for encoders that cut documents, several sequences of at most `chunk_length`
tokens. `Sequences` is that view: new offsets over the same flat tokens.

A batch is packed: its sequences stand one after another in one flat tensor. The dense layers of an encoder see
tokens alone and no padding; attention is told where the sequences end.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.stores.episode import Episode
from utils.stores.token_store import TokenStore

T = TypeVar("T")

ATTENTION_BLOCKS = 4


@dataclass
class AttentionBlocks:
    """The sequences of a pack as a few padded matrices of like length, for attention on a GPU.

    A block has b sequences, padded to L: `tokens` int64 (b, L), the index of each token in the pack; `present` bool
    (b, 1, 1, L), false where the token is padding; `sequences` int64 (b,), their numbers. Over all blocks one after
    another, `token_place` int64 (T,) is where each of the pack's tokens stands, `sequence_place` (n,) each sequence.
    """

    tokens: list[Tensor]
    present: list[Tensor]
    sequences: list[Tensor]
    token_place: Tensor
    sequence_place: Tensor

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "AttentionBlocks":
        counts = np.array(lengths)
        first = np.cumsum(counts) - counts
        order = np.argsort(counts, kind="stable")
        token_place, offset, blocks = np.empty(counts.sum(), np.int64), 0, []
        for sequences in np.array_split(order, min(ATTENTION_BLOCKS, len(order))):
            columns = np.arange(-(-counts[sequences].max() // 8) * 8)  # as the kernels' loads are aligned
            present = columns < counts[sequences, None]
            tokens = first[sequences, None] + np.where(present, columns, 0)
            token_place[tokens[present]] = offset + np.flatnonzero(present)
            offset += present.size
            blocks.append((tokens, present[:, None, None], sequences))
        columns_of_blocks = (
            [_move(torch.from_numpy(array), device) for array in arrays] for arrays in zip(*blocks, strict=True)
        )
        places = (_move(torch.from_numpy(array), device) for array in (token_place, np.argsort(order)))
        return cls(*columns_of_blocks, *places)


@dataclass
class PackedTokens:
    """n sequences of T tokens in all, one after another.

    `input_ids` int64 (T,); `positions` int64 (T,), each token's place in its sequence, from 0; `first` int64 (n,),
    the index of each sequence's first token. `lengths` are plain numbers, so that nothing waits for a GPU. `blocks`
    is there on a GPU only.
    """

    input_ids: Tensor
    positions: Tensor
    first: Tensor
    lengths: list[int]
    blocks: AttentionBlocks | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(count, length) of neighbouring sequences of equal length, in order."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def to(self, device: torch.device) -> "PackedTokens":
        moved = [_move(tensor, device) for tensor in (self.input_ids, self.positions, self.first)]
        return PackedTokens(
            *moved, self.lengths, AttentionBlocks.of(self.lengths, device) if device.type == "cuda" else None
        )


@dataclass
class TripletBatch:
    """B triplets over distinct sequences, queries and passages in one pack.

    `query` (B,), `positive` and `negative` (B, C) are numbers of sequences in `tokens`: C is the most sequences that
    a passage was cut into, and a shorter passage repeats its first one. `clusters` (B,) int64, -1 for a triplet that
    only keeps its process company and counts for nothing; `weights` (B,) float32. `sequence_clusters`, int64
    ascending, a sequence each, stays on the CPU.
    """

    tokens: PackedTokens
    query: Tensor
    positive: Tensor
    negative: Tensor
    clusters: Tensor
    weights: Tensor
    sequence_clusters: Tensor

    @property
    def token_clusters(self) -> Tensor:
        """The cluster of each token, int64 (T,), on the CPU."""
        return self.sequence_clusters.repeat_interleave(torch.tensor(self.tokens.lengths))

    def to(self, device: torch.device) -> "TripletBatch":
        moved = {name: _move(value, device) for name, value in vars(self).items() if name != "sequence_clusters"}
        return TripletBatch(**moved, sequence_clusters=self.sequence_clusters)


def _move(value: Tensor | PackedTokens, device: torch.device) -> Tensor | PackedTokens:
    """To the device; by way of pinned memory where that is a GPU, so that the host does not wait for the copy."""
    if isinstance(value, Tensor) and device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


StepBatches = Generator[tuple[list[TripletBatch], int], None, None]


class Sequences:
    """The sequences of a token store: its rows, or their chunks of `chunk_length` tokens.

    Attributes: `store` and `chunk_length` as given; `offsets` int64 (sequences + 1,) into the store's tokens;
    `row_starts` int64 (rows + 1,), row i is sequences row_starts[i] … row_starts[i + 1] - 1. An empty row is one
    sequence without tokens.
    """

    def __init__(self, store: TokenStore, chunk_length: int | None = None) -> None:
        self.store = store
        self.chunk_length = chunk_length
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
    def row_count(self) -> int:
        return len(self.row_starts) - 1

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of these sequences, int64."""
        return self.offsets[numbers + 1] - self.offsets[numbers]

    @property
    def rows(self) -> np.ndarray:
        """The row that each sequence belongs to, int64."""
        return np.repeat(np.arange(len(self.row_starts) - 1), np.diff(self.row_starts))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The sequences of each row, int64 (rows, C); a row with fewer than C repeats its first one."""
        counts = self.row_starts[rows + 1] - self.row_starts[rows]
        columns = np.arange(counts.max(initial=1))
        return self.row_starts[rows, None] + np.where(columns < counts[:, None], columns, 0)


def pack(parts: Sequence[tuple[Sequences, np.ndarray]], order: np.ndarray | None = None) -> PackedTokens:
    """Gathers sequences, by their numbers in one or several stores, into one pack.

    `order` arranges them: the pack's i-th sequence is the order[i]-th of all `parts` one after another.
    """
    starts = np.concatenate([source.offsets[numbers] for source, numbers in parts])
    lengths = np.concatenate([source.lengths_of(numbers) for source, numbers in parts])
    part = np.repeat(np.arange(len(parts)), [len(numbers) for _, numbers in parts])
    if order is not None:
        starts, lengths, part = starts[order], lengths[order], part[order]
    empty = lengths == 0  # a text without tokens still has a vector: that of a padding token
    taken = np.maximum(lengths, 1)
    first = np.cumsum(taken) - taken
    positions = np.arange(taken.sum()) - np.repeat(first, taken)
    where, part = positions + np.repeat(starts, taken), np.repeat(np.where(empty, -1, part), taken)
    input_ids = np.full(len(positions), parts[0][0].pad_token_id, dtype=np.int64)
    for number, (source, _) in enumerate(parts):
        own = part == number
        input_ids[own] = source.tokens[where[own]]
    return PackedTokens(*map(torch.from_numpy, (input_ids, positions, first)), taken.tolist())


def make_triplet_batch(
    episode: Episode, triplets: np.ndarray, queries: Sequences, passages: Sequences
) -> TripletBatch:
    """Builds the batch of these triplets (their numbers in the mined file's order).

    Each distinct text stands in it once; a passage that serves queries of two clusters stands in it twice, so that
    every sequence belongs to one cluster. Sequences are sorted by cluster, within one from short to long.
    """
    lines = episode.line_of(triplets)
    clusters = episode.clusters[lines]
    query_rows, query_clusters, query = _distinct(episode.query_rows[lines], clusters)
    texts = np.concatenate([episode.positive_rows[lines], episode.negative_rows[triplets]])
    rows, row_clusters, text = _distinct(texts, np.concatenate([clusters, clusters]))
    sequences = passages.of_rows(rows)  # distinct texts, C
    flat, passage_clusters, position = _distinct(sequences.ravel(), np.repeat(row_clusters, sequences.shape[1]))

    parts = [(queries, queries.row_starts[query_rows]), (passages, flat)]
    sequence_clusters = np.concatenate([query_clusters, passage_clusters])
    lengths = np.concatenate([source.lengths_of(numbers) for source, numbers in parts])
    order = np.lexsort((lengths, sequence_clusters))
    place = torch.from_numpy(np.argsort(order))  # of each query, then of each passage sequence, in the pack
    passage = place[len(query_rows) + position.reshape(sequences.shape)[text]]  # 2 B, C
    return TripletBatch(
        tokens=pack(parts, order),
        query=place[query],
        positive=passage[: len(triplets)],
        negative=passage[len(triplets) :],
        clusters=torch.from_numpy(clusters),
        weights=torch.from_numpy(episode.weights[lines]),
        sequence_clusters=torch.from_numpy(sequence_clusters[order]),
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
            batch.clusters.fill_(-1)
            batch.sequence_clusters.fill_(-1)
        batches.append(batch)
    return batches


def step_batches(
    episode: Episode,
    position: int,
    batch_size: int,
    accumulation: int,
    queries: Sequences,
    passages: Sequences,
    device: torch.device,
) -> StepBatches:
    """This process's batches, on the device, of each step from `position` on, and the next step's position.

    They are made one step ahead, in the background (`prefetch`), and go over the mined file again and again.
    `InputError` where the mined file has no such position.
    """
    if position >= episode.triplets:
        raise InputError(
            f"training stands at triplet {position:,} of a mined file that has {episode.triplets:,}: the checkpoint "
            "is of another one; give the --ann_dir that it was trained with"
        )

    def make(position: int) -> tuple[list[TripletBatch], int]:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has a current device of its own
        parts, following = take_step(position, episode.triplets, batch_size, accumulation)
        return [batch.to(device) for batch in make_step_batches(episode, parts, queries, passages)], following

    return prefetch(make, position)


def prefetch(make: Callable[[int], tuple[T, int]], position: int) -> Generator[tuple[T, int], None, None]:
    """What `make` gives at `position`, then at the position that it returned, …; one ahead, in the background.

    `make` takes a position and returns what a step there needs and the next step's position. What it raises is raised
    here, when its turn comes. Close it when no more is wanted; what it is one ahead with is dropped.
    """
    with ThreadPoolExecutor(1, "prefetch") as background:
        coming = background.submit(make, position)
        while True:
            made, position = coming.result()
            coming = background.submit(make, position)
            yield made, position
