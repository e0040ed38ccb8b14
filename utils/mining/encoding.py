"""Encodes a token store with a checkpoint, each process its share of the rows.

Rows are shared out evenly by tokens, not by count. Within a window of rows, sequences go from long to short, since
those of one length share a call of attention, and batches are cut by their tokens. The order follows from the lengths
alone, so that an encoding that was killed goes on in it, with another batch size too. No process waits in a
collective for another's share, which may take hours longer than its own.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from utils.batching import PackedTokens, Sequences, pack
from utils.mining.collapse import note_collapse
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.logs import progress, say
from utils.runtime.precision import PRECISIONS, Precision
from utils.runtime.stopping import Stopped
from utils.stores.embedding_store import (
    DTYPES,
    EmbeddingMatrix,
    EmbeddingSource,
    ShardWriter,
    find_embeddings,
    forget_embeddings,
    record_embeddings,
    shards_are_whole,
)
from utils.stores.lock import taking_turns
from utils.stores.pretrained import longest_sequence
from utils.stores.token_store import AS_IT_IS, Preparation, TokenStore

WINDOW = 32_768  # sequences sorted together; their vectors' place in the shard is 100 MB at 768 dimensions
# Tokens of a batch. On a CPU, where each core has one, 1,024 to 16,384 are equally fast to a tenth, 384 or 768 wide,
# and a small batch is less to lose: 20 seconds of the core for 2,048, 24 layers and 1024 wide. A GPU, whose launches
# take as long for few as for many, gets what its memory holds beside the weights: 3 GB at a width of 768.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


class VectorReading(Protocol):
    """How texts become vectors: prompts, chunks, and `vectors`, what the manifest of embeddings has of the rest."""

    vectors: str
    queries: Preparation
    passages: Preparation
    chunk_length: int | None


class SequenceEncoder(Protocol):
    """What encoding asks of an encoder: `PackedTokens` of n sequences → float (n, embedding_dim).

    `with_weights` gives one whose layers have weights of this type, and the vectors' type stays.
    """

    embedding_dim: int
    config: PreTrainedConfig
    reading: VectorReading

    def __call__(self, tokens: PackedTokens) -> Tensor: ...

    def with_weights(self, dtype: torch.dtype) -> "SequenceEncoder": ...


def check_length(config: PreTrainedConfig, name: str, max_length: int, chunk_length: int | None = None) -> None:
    """`InputError` where sequences of store NAME may be longer than the encoder of this configuration has positions.

    A row has up to `max_length` tokens and is cut into sequences of `chunk_length`, if given.
    """
    longest, positions = min(max_length, chunk_length or max_length), longest_sequence(config)
    if longest > positions:
        raise InputError(
            f"{name} may have {longest} tokens a text, and the encoder has positions for {positions}; tokenize "
            "with a shorter --max_seq_length or --max_query_length, or take another encoder"
        )


def open_sequences(
    folder: str | Path,
    tokenizer,
    config: PreTrainedConfig,
    max_length: int | None,
    chunk_length: int | None = None,
    prepared: Preparation = AS_IT_IS,
) -> Sequences:
    """The sequences of a token store, which must fit the encoder, its tokenizer, texts and length (None: any)."""
    store = TokenStore(folder)
    if distributed.is_main():
        store.check_content()
    store.expect(tokenizer, max_length or store.meta.max_length, prepared)
    check_length(config, store.folder.name, store.meta.max_length, chunk_length)
    return Sequences(store, chunk_length)


def share_of_rows(offsets: np.ndarray, shard: int, shards: int) -> tuple[int, int]:
    """The rows start … stop - 1 of one shard, so that every shard has about the same number of tokens."""
    cuts = np.searchsorted(offsets, offsets[-1] * np.arange(1, shards) / shards)
    bounds = [0, *cuts.tolist(), len(offsets) - 1]
    return bounds[shard], bounds[shard + 1]


def order_by_length(lengths: np.ndarray) -> np.ndarray:
    """The order in which sequences of these lengths are encoded, int64: window by window, from long to short."""
    return np.lexsort((-lengths, np.arange(len(lengths)) // WINDOW))


def cut_batches(lengths: np.ndarray, most_sequences: int, most_tokens: int) -> Iterator[slice]:
    """Cuts sequences of these lengths, in their order, into batches as large as both bounds allow.

    A sequence of more than `most_tokens` is a batch.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    start = 0
    while start < len(lengths):
        fitting = int(np.searchsorted(ends, ends[start] + most_tokens, side="right")) - 1
        stop = max(start + 1, min(fitting, start + most_sequences))
        yield slice(start, stop)
        start = stop


@torch.inference_mode()
def encode(
    encoder: SequenceEncoder,
    sequences: Sequences,
    batches: Iterator[np.ndarray],
    device: torch.device,
    precision: Precision,
    write: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Gives `write` the sequences' numbers, int64 (n,), and vectors, float32 (n, dimensions), of batch after batch.

    A GPU has its next batch already while the vectors of one are written. On a CPU, each of torch's threads encodes
    batches of its own: none waits for another within an operation, and how many there are changes no vector.
    """
    encoder = encoder.with_weights(precision.encoding_weights)

    @torch.inference_mode()  # which is a thread's own, as autocast is
    def vectors(numbers: np.ndarray) -> Tensor:
        with precision.autocast():
            return encoder(pack([(sequences, numbers)]).to(device)).float()

    if device.type == "cpu":
        threads = torch.get_num_threads()
        with _one_core_each(threads) as pool:
            _write_in_order(batches, lambda numbers: pool.submit(vectors, numbers).result, threads, write)
    else:
        with precision.autocast():  # around all of them: a weight of another type is cast once
            _write_in_order(batches, lambda numbers: _copy_to_host(vectors(numbers)), 1, write)


def _write_in_order(
    batches: Iterator[np.ndarray],
    launch: Callable[[np.ndarray], Callable[[], Tensor]],
    ahead: int,
    write: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Gives `write` the vectors of batch after batch; `ahead` more batches have begun by then.

    `launch` begins one. What it returns waits for its vectors.
    """
    launched: deque[tuple[np.ndarray, Callable[[], Tensor]]] = deque()
    for batch in batches:
        launched.append((batch, launch(batch)))
        if len(launched) > ahead:
            numbers, finish = launched.popleft()
            write(numbers, finish().numpy())
    for numbers, finish in launched:
        write(numbers, finish().numpy())


@contextmanager
def _one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """As many threads, in each of which torch computes on one core.

    A signal to stop, or an error, does not wait for what they are at, which may take minutes. (The interpreter does,
    before it ends.)
    """
    pool = ThreadPoolExecutor(threads, "encode", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)  # which threads that are still to come would have been given as well


def _copy_to_host(vectors: Tensor) -> Callable[[], Tensor]:
    """Begins to copy vectors from a GPU; what it returns waits for their arrival and gives them."""
    copy = vectors.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait


def check_vectors(vectors: np.ndarray, numbers: np.ndarray, name: str, dtype: str) -> None:
    """`InputError` where a vector of these sequences of store NAME is not finite, or would not be in `dtype`."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the vector of sequence {numbers[~finite][0]} of {name} is not finite: the checkpoint is broken"
        )
    sizes, largest = np.abs(vectors).max(axis=1), np.finfo(dtype).max
    if sizes.max() > largest:
        raise InputError(
            f"the vector of sequence {numbers[sizes.argmax()]} of {name} has a value of {sizes.max():g}, and {dtype} "
            f"ends at {largest:g}; encode with --embedding_dtype float32"
        )


def encode_store(
    encoder: SequenceEncoder,
    sequences: Sequences,
    name: str,
    folder: str | Path,
    weights: str,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    dtype: str = "float32",
) -> EmbeddingMatrix:
    """The embeddings of a token store as a matrix in `folder`: found there, or encoded by all processes together.

    `weights` is the checkpoint's fingerprint, and `dtype` the type that vectors are stored in. A batch has at most
    `batch_size` sequences and, of several, `BATCH_TOKENS` tokens. The encoder must be on `device` and in eval mode,
    and fit the sequences (`open_sequences`). Raises `InputError` where a vector holds a value that is not finite, and
    where what would be reused was altered.
    """
    source = _source(encoder, sequences, weights, precision.dtype, dtype)

    def are_there(tidily: bool = False) -> bool:
        """`tidily`: with nothing beside them that a kill has left and this run may remove."""
        matrix = find_embeddings(folder, name, source)
        return matrix is not None and not (tidily and matrix.others() and os.access(folder, os.W_OK))

    if not distributed.on_main(lambda: are_there(tidily=True)):
        with taking_turns(folder, "encoding"):  # a run that shares the folder may be at the same
            if distributed.on_main(are_there):
                distributed.on_main(lambda: find_embeddings(folder, name, source).remove_others())
            else:
                how = {"batch_size": batch_size, "device": device, "precision": precision}
                _encode_together(encoder, sequences, name, folder, source, **how)
                return _wait_for_embeddings(folder, name, source)
    matrix = _wait_for_embeddings(folder, name, source)
    matrix.check_content(distributed.rank(), distributed.world_size())
    say(f"{name}: {len(sequences):,} embeddings reused from {folder}")
    return matrix


def _encode_together(
    encoder: SequenceEncoder,
    sequences: Sequences,
    name: str,
    folder: str | Path,
    source: EmbeddingSource,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> None:
    """Each process encodes its share; the main one enters the matrix into the manifest once all shards are whole."""
    distributed.on_main(lambda: forget_embeddings(folder, name))  # the others go on only after that
    shard, shards = distributed.rank(), distributed.world_size()
    first, last = share_of_rows(sequences.offsets, shard, shards)
    lengths = np.diff(sequences.offsets[first : last + 1])
    order = order_by_length(lengths)
    writer = ShardWriter(folder, name, shard, shards, order, source)
    distributed.barrier()  # from here on, no shard and no mark of another source lies there
    left = order[writer.done :]
    batches = (first + left[cut] for cut in cut_batches(lengths[left], batch_size, BATCH_TOKENS[device.type]))
    with progress(total=len(order), initial=writer.done, unit="texts", label=f"encode {name}") as bar:

        def write(numbers: np.ndarray, vectors: np.ndarray) -> None:
            check_vectors(vectors, numbers, name, source.dtype)
            writer.write(vectors)
            bar.update(len(numbers))
            distributed.beat()

        try:
            encode(encoder, sequences, batches, device, precision, write)
        except Stopped:
            writer.mark()
            raise
    writer.close()
    if distributed.is_main():
        distributed.wait_until(lambda: shards_are_whole(folder, name, source, shards))
        record_embeddings(folder, name, source, shards)
        say(f"{name}: {len(sequences):,} texts encoded into {folder}")


def _source(
    encoder: SequenceEncoder, sequences: Sequences, weights: str, precision: torch.dtype, dtype: str
) -> EmbeddingSource:
    return EmbeddingSource(
        weights=weights,
        tokens=sequences.store.meta.sha256,
        max_length=sequences.store.meta.max_length,
        chunk_length=sequences.chunk_length or 0,
        precision=str(precision).removeprefix("torch."),
        dtype=dtype,
        rows=len(sequences),
        dimensions=encoder.embedding_dim,
        reading=encoder.reading.vectors,
    )


def _wait_for_embeddings(folder: str | Path, name: str, source: EmbeddingSource) -> EmbeddingMatrix:
    """The matrix, once this process sees it too: a shared folder may show it to the main process first."""
    distributed.wait_until(lambda: find_embeddings(folder, name, source) is not None)
    return find_embeddings(folder, name, source)


@dataclass(frozen=True)
class StoreEncoder:
    """A loaded checkpoint, in eval mode on its device, and how it encodes token stores (see `encode_store`).

    `weights` is the checkpoint's fingerprint.
    """

    encoder: SequenceEncoder
    tokenizer: PreTrainedTokenizerFast
    weights: str
    batch_size: int
    device: torch.device
    precision: Precision
    dtype: str = "float32"

    def open_queries(self, folder: str | Path, max_length: int | None = None) -> Sequences:
        """A store of queries as this encoder reads them, of this length (None: any)."""
        prepared = self.encoder.reading.queries
        return open_sequences(folder, self.tokenizer, self.encoder.config, max_length, prepared=prepared)

    def open_passages(self, folder: str | Path, max_length: int | None = None) -> Sequences:
        """The same of passages, which the encoder may read in chunks."""
        reading = self.encoder.reading
        on = self.tokenizer, self.encoder.config, max_length
        return open_sequences(folder, *on, reading.chunk_length, reading.passages)

    def encode(self, sequences: Sequences, folder: str | Path) -> EmbeddingMatrix:
        """The embeddings of these sequences, in `folder` under their store's name; all processes must call it.

        Whether the encoder has collapsed is noted in them, and said.
        """
        matrix = encode_store(
            self.encoder,
            sequences,
            sequences.store.folder.name,
            folder,
            self.weights,
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            dtype=self.dtype,
        )
        note_collapse(sequences, matrix, self.precision.dtype)
        return matrix

    def find(self, sequences: Sequences, folder: str | Path) -> EmbeddingMatrix | None:
        """What `encode` made in `folder`, in any precision; None for nothing. Nothing there is changed."""
        for precision, dtype in product(PRECISIONS, DTYPES):
            source = _source(self.encoder, sequences, self.weights, precision, dtype)
            matrix = find_embeddings(folder, sequences.store.folder.name, source)
            if matrix is not None:
                matrix.check_content()
                note_collapse(sequences, matrix, precision)
                return matrix
        return None
