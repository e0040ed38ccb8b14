"""From a mined file to the batches of a step: what is a sample, which passages it is scored against, who takes which.

Losses differ in what they take for a sample. `Triplets` takes each negative of a line with the line's query and
positive; `Blocks` takes each line, which shares passages with the other lines of its block. Samples are numbered in
the mined file's order, and so are the places where training may stop and go on.
"""

from collections.abc import Generator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.batching import PackedTokens, Sequences, move, pack, prefetch
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.stores.episode import Episode
from utils.stores.known_passages import KnownPassages


@dataclass
class Batch:
    """B samples over distinct sequences, queries and passages in one pack.

    `query` (B,) and `candidates` (B, J, C) are numbers of sequences in `tokens`: J passages, the positive first, of
    which `allowed`, bool (B, J), says which count; C is the most sequences that a passage was cut into, and a shorter
    passage repeats its first one. `clusters` (B,) int64, -1 for a sample that only keeps its process company and
    counts for nothing; `weights` (B,) float32. `sequence_clusters`, int64 ascending, a sequence each, stays on the
    CPU.
    """

    tokens: PackedTokens
    query: Tensor
    candidates: Tensor
    allowed: Tensor
    clusters: Tensor
    weights: Tensor
    sequence_clusters: Tensor

    @property
    def token_clusters(self) -> Tensor:
        """The cluster of each token, int64 (T,), on the CPU."""
        return self.sequence_clusters.repeat_interleave(torch.tensor(self.tokens.lengths))

    def to(self, device: torch.device) -> "Batch":
        moved = {name: move(value, device) for name, value in vars(self).items() if name != "sequence_clusters"}
        return Batch(**moved, sequence_clusters=self.sequence_clusters)


class Step(NamedTuple):
    """What a process takes a step on: its `batches`, and, a process each, the clusters in all processes' batches.

    `clusters` are int64 and stay on the CPU.
    """

    batches: list[Batch]
    clusters: list[Tensor]


Steps = Generator[tuple[Step, int], None, None]


class Candidates(NamedTuple):
    """Of B samples: `lines` int64 (B,) of the mined file; `rows` int64 and `allowed` bool (B, J), positives first."""

    lines: np.ndarray
    rows: np.ndarray
    allowed: np.ndarray


class Samples(Protocol):
    """The samples of a mined file, `episode`; `unit` is what they are called, and `len` how many there are.

    `asks_known`: they are made from the episode and `KnownPassages`, else from the episode alone.
    """

    unit: str
    asks_known: bool
    episode: Episode

    def __len__(self) -> int: ...

    def most(self, batch_size: int) -> int:
        """The samples that a batch with room for `batch_size` has at most."""

    def take(self, position: int, batch_size: int, accumulation: int) -> tuple[list[list[np.ndarray]], int]:
        """The samples of the step that begins at `position`, and the next step's position.

        They are a list a process, in which each batch has an array. At the end of the file a step takes what is left,
        shared out evenly, and the next one begins at the front.
        """

    def steps_left(self, position: int, batch_size: int, accumulation: int) -> int:
        """The steps from `position` to the end of the file."""

    def candidates(self, samples: np.ndarray) -> Candidates:
        """What these samples are scored against."""

    def clusters(self, samples: np.ndarray) -> np.ndarray:
        """The distinct clusters of these samples, int64."""


class Triplets:
    """Each negative of a line with the line's query and positive: two candidates.

    A step takes the next `batch_size · accumulation · processes` of them.
    """

    unit, asks_known = "triplets", False

    def __init__(self, episode: Episode) -> None:
        self.episode = episode

    def __len__(self) -> int:
        return self.episode.triplets

    def most(self, batch_size: int) -> int:
        return batch_size

    def take(self, position: int, batch_size: int, accumulation: int) -> tuple[list[list[np.ndarray]], int]:
        parts, stop = _share_out(position, len(self), batch_size, accumulation)
        return parts, stop % len(self)

    def steps_left(self, position: int, batch_size: int, accumulation: int) -> int:
        return ceil((len(self) - position) / (batch_size * accumulation * distributed.world_size()))

    def candidates(self, samples: np.ndarray) -> Candidates:
        lines = self.episode.line_of(samples)
        rows = np.stack([self.episode.positive_rows[lines], self.episode.negative_rows[samples]], axis=1)
        return Candidates(lines, rows, np.ones(rows.shape, dtype=bool))

    def clusters(self, samples: np.ndarray) -> np.ndarray:
        return np.unique(self.episode.clusters[self.episode.line_of(samples)])


class Blocks:
    """Each line, scored against the passages of all lines of its block, those of equal tokens once.

    What is `known` to be no negative of the line's query does not count; the line's own positive always does, once. A
    block is never split: a batch takes as many whole ones as its `batch_size` lines have room for if all are of the
    largest size, and a step those of its `accumulation · processes` batches.
    """

    unit, asks_known = "lines", True

    def __init__(self, episode: Episode, known: KnownPassages) -> None:
        """`InputError` where the episode was mined without blocks."""
        if episode.block_starts is None:
            raise InputError(
                "was mined without blocks of queries, which --loss contrastive needs; mine the episode again with "
                "--queries_together, or train with --loss pairwise",
                episode.path,
            )
        self.episode, self._known = episode, known
        self._largest = int(np.diff(episode.block_starts).max())

    def __len__(self) -> int:
        return len(self.episode.query_rows)

    def most(self, batch_size: int) -> int:
        return self._blocks_a_batch(batch_size) * self._largest

    def take(self, position: int, batch_size: int, accumulation: int) -> tuple[list[list[np.ndarray]], int]:
        starts = self.episode.block_starts
        first, blocks = self._block_at(position), len(starts) - 1
        parts, stop = _share_out(first, blocks, self._blocks_a_batch(batch_size), accumulation)
        lines = [
            [np.arange(starts[part[0]], starts[part[-1] + 1]) if len(part) else part for part in of_process]
            for of_process in parts
        ]
        return lines, int(starts[stop % blocks])

    def steps_left(self, position: int, batch_size: int, accumulation: int) -> int:
        left = len(self.episode.block_starts) - 1 - self._block_at(position)
        return ceil(left / (self._blocks_a_batch(batch_size) * accumulation * distributed.world_size()))

    def candidates(self, samples: np.ndarray) -> Candidates:
        """`samples` are lines, ascending; those of a block are scored against each other's passages."""
        block = np.searchsorted(self.episode.block_starts, samples, side="right")
        found = [self._of_block(lines) for lines in np.split(samples, np.flatnonzero(np.diff(block)) + 1)]
        most = max(rows.shape[1] for rows, _ in found)
        rows = np.repeat(self.episode.positive_rows[samples, None], most, axis=1)
        allowed, end = np.zeros(rows.shape, dtype=bool), 0  # where a block has no more passages, nothing is
        for own_rows, own_allowed in found:
            here = slice(end, end + len(own_rows)), slice(own_rows.shape[1])
            rows[here], allowed[here] = own_rows, own_allowed
            end += len(own_rows)
        return Candidates(samples, rows, allowed)

    def clusters(self, samples: np.ndarray) -> np.ndarray:
        return np.unique(self.episode.clusters[samples])

    def _of_block(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The candidates of the lines of one block, and which are allowed, (lines, 1 + distinct passages)."""
        episode = self.episode
        positives = episode.positive_rows[lines, None]
        negatives = episode.negative_rows[episode.starts[lines[0]] : episode.starts[lines[-1] + 1]]
        passages = self._known.first_of_each_text(np.concatenate([positives[:, 0], negatives]))
        others, query_rows = np.broadcast_to(passages, (len(lines), len(passages))), episode.query_rows[lines]
        known = self._known.are_itself(query_rows, others) | self._known.are_relevant(query_rows, others)
        known |= self._known.are_equal(others, positives)
        allowed = np.concatenate([np.ones(positives.shape, dtype=bool), ~known], axis=1)
        return np.concatenate([positives, others], axis=1), allowed

    def _block_at(self, position: int) -> int:
        block = int(np.searchsorted(self.episode.block_starts, position))
        if self.episode.block_starts[block] != position:
            raise InputError(
                f"training stands at line {position:,} of this mined file, where no block begins: the checkpoint is "
                "of another one; give the --ann_dir that it was trained with",
                self.episode.path,
            )
        return block

    def _blocks_a_batch(self, batch_size: int) -> int:
        if batch_size < self._largest:
            raise InputError(
                f"--per_gpu_train_batch_size is {batch_size}, and a block of this mined file has {self._largest} "
                f"lines, which stay together (--queries_together); give {self._largest} or a multiple of it",
                self.episode.path,
            )
        return batch_size // self._largest


def _share_out(first: int, count: int, batch_size: int, accumulation: int) -> tuple[list[list[np.ndarray]], int]:
    """Each process's batches of a step over what is numbered from `first` to `count` - 1, and where the step ends."""
    size = distributed.world_size()
    stop = min(first + batch_size * accumulation * size, count)
    parts = np.array_split(np.arange(first, stop), size * accumulation)
    return [parts[start : start + accumulation] for start in range(0, len(parts), accumulation)], stop


def make_batch(samples: Samples, part: np.ndarray, queries: Sequences, passages: Sequences) -> Batch:
    """Builds the batch of these samples, int64 (B,).

    Each distinct text stands in it once; a passage that serves queries of two clusters stands in it twice, so that
    every sequence belongs to one cluster. Sequences are sorted by cluster, within one from short to long.
    """
    episode = samples.episode
    lines, candidates, allowed = samples.candidates(part)
    clusters = episode.clusters[lines]
    query_rows, query_clusters, query = _distinct(episode.query_rows[lines], clusters)
    rows, row_clusters, text = _distinct(candidates.ravel(), np.repeat(clusters, candidates.shape[1]))
    sequences = passages.of_rows(rows)  # distinct texts, C
    flat, passage_clusters, position = _distinct(sequences.ravel(), np.repeat(row_clusters, sequences.shape[1]))

    parts = [(queries, queries.row_starts[query_rows]), (passages, flat)]
    sequence_clusters = np.concatenate([query_clusters, passage_clusters])
    lengths = np.concatenate([source.lengths_of(numbers) for source, numbers in parts])
    order = np.lexsort((lengths, sequence_clusters))
    place = torch.from_numpy(np.argsort(order))  # of each query, then of each passage sequence, in the pack
    passage = place[len(query_rows) + position.reshape(sequences.shape)[text]]  # B J, C
    return Batch(
        tokens=pack(parts, order),
        query=place[query],
        candidates=passage.view(*candidates.shape, -1),
        allowed=torch.from_numpy(allowed),
        clusters=torch.from_numpy(clusters),
        weights=torch.from_numpy(episode.weights[lines]),
        sequence_clusters=torch.from_numpy(sequence_clusters[order]),
    )


def _distinct(rows: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct (row, cluster) pairs by cluster, then row: rows, clusters, and which of them each given one is."""
    most = int(rows.max(initial=0)) + 1
    pairs, where = np.unique(clusters * most + rows, return_inverse=True)
    return pairs % most, pairs // most, where


def make_step_batches(
    samples: Samples, parts: list[np.ndarray], queries: Sequences, passages: Sequences
) -> list[Batch]:
    """A batch of each of `parts`; of one without samples, a batch that counts for nothing (cluster -1)."""
    batches = []
    for part in parts:
        batch = make_batch(samples, part if len(part) else np.zeros(1, np.int64), queries, passages)
        if not len(part):
            batch.clusters.fill_(-1)
            batch.sequence_clusters.fill_(-1)
        batches.append(batch)
    return batches


def step_batches(
    samples: Samples,
    position: int,
    batch_size: int,
    accumulation: int,
    queries: Sequences,
    passages: Sequences,
    device: torch.device,
) -> Steps:
    """Each step from `position` on, with this process's batches on the device, and the next step's position.

    They are made one step ahead, in the background (`prefetch`), and go over the mined file again and again.
    `InputError` where the mined file has no such position.
    """
    if position >= len(samples):
        raise InputError(
            f"training stands at number {position:,} of the {len(samples):,} {samples.unit} of this mined file: the "
            "checkpoint is of another one; give the --ann_dir that it was trained with",
            samples.episode.path,
        )
    samples.steps_left(position, batch_size, accumulation)  # what does not fit is refused here, not in the background

    def make(position: int) -> tuple[Step, int]:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has a current device of its own
        parts, following = samples.take(position, batch_size, accumulation)
        batches = make_step_batches(samples, parts[distributed.rank()], queries, passages)
        clusters = [torch.from_numpy(samples.clusters(np.concatenate(of_process))) for of_process in parts]
        return Step([batch.to(device) for batch in batches], clusters), following

    return prefetch(make, position)
