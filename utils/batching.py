"""From token rows to packed batches, without padding and without a Python object a token.

A store's row is one sequence, or, for encoders that cut documents, several sequences of at most `chunk_length`
tokens. `Sequences` is that view: new offsets over the same flat tokens.

A pack is a batch of sequences: they stand one after another in one flat tensor. The dense layers of an encoder see
tokens alone and no padding; attention is told where the sequences end.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.stores.token_store import TokenStore

T = TypeVar("T")

ATTENTION_BLOCKS = 4


@dataclass
class AttentionBlocks:
    """The sequences of a pack as a few padded matrices of like length, for attention.

    A block has b sequences, padded to L tokens: `present` bool (b, 1, 1, L) is false where a token is padding. Over
    all blocks one after another, padding included, `token_place` int64 (T,) is where each of the pack's tokens
    stands; among all sequences, `sequence_place` (n,) is where each sequence stands.
    """

    present: list[Tensor]
    token_place: Tensor
    sequence_place: Tensor
    _scores: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)

    def scores(self, dtype: torch.dtype) -> list[Tensor]:
        """0 where a token is present and -inf where it is padding, (b, 1, 1, L) each; made once for all layers."""
        if dtype not in self._scores:
            zero = torch.zeros((), dtype=dtype, device=self.token_place.device)
            self._scores[dtype] = [zero.where(present, -torch.inf) for present in self.present]
        return self._scores[dtype]

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "AttentionBlocks":
        """A few of about as many sequences each, for a GPU, where every block is several launches."""
        order = np.argsort(lengths, kind="stable")
        parts = np.array_split(order, min(ATTENTION_BLOCKS, len(order)))
        return cls._of(np.array(lengths), parts, 8, device)  # kernels load 8 numbers at once

    @classmethod
    def by_length(cls, lengths: list[int], multiple: int) -> "AttentionBlocks":
        """One for all sequences that are padded to the same multiple of `multiple` tokens, for a CPU.

        How far a sequence is padded does not depend on those beside it.
        """
        classes = -(-np.array(lengths) // multiple)
        order = np.argsort(classes, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
        return cls._of(np.array(lengths), parts, multiple, torch.device("cpu"))

    @classmethod
    def _of(
        cls, counts: np.ndarray, parts: list[np.ndarray], multiple: int, device: torch.device
    ) -> "AttentionBlocks":
        first, order = np.cumsum(counts) - counts, np.concatenate(parts)
        token_place, offset, blocks = np.empty(counts.sum(), np.int64), 0, []
        for sequences in parts:
            columns = np.arange(-(-counts[sequences].max() // multiple) * multiple)
            present = columns < counts[sequences, None]
            token_place[(first[sequences, None] + columns)[present]] = offset + np.flatnonzero(present)
            offset += present.size
            blocks.append(move(torch.from_numpy(present[:, None, None]), device))
        places = (move(torch.from_numpy(array), device) for array in (token_place, np.argsort(order)))
        return cls(blocks, *places)


@dataclass
class PackedTokens:
    """n sequences of T tokens in all, one after another.

    `input_ids` int64 (T,); `positions` int64 (T,), each token's place in its sequence, from 0; `first` int64 (n,),
    the index of each sequence's first token. `lengths` are plain numbers, so that nothing waits for a GPU. `blocks`
    are for attention that pads (model/attention.py). On a GPU only there are `bounds`, int32 (n + 1,): sequence i is
    the tokens bounds[i] … bounds[i + 1] - 1.
    """

    input_ids: Tensor
    positions: Tensor
    first: Tensor
    lengths: list[int]
    blocks: AttentionBlocks | None = None
    bounds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(count, length) of neighbouring sequences of equal length, in order."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def to(self, device: torch.device) -> "PackedTokens":
        moved = [move(tensor, device) for tensor in (self.input_ids, self.positions, self.first)]
        if device.type != "cuda":
            return PackedTokens(*moved, self.lengths)
        bounds = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        return PackedTokens(*moved, self.lengths, AttentionBlocks.of(self.lengths, device), move(bounds, device))


def move(value: Tensor | PackedTokens, device: torch.device) -> Tensor | PackedTokens:
    """To the device; by way of pinned memory where that is a GPU, so that the host does not wait for the copy."""
    if isinstance(value, Tensor) and device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


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
