"""Encodes a token store with a checkpoint, each process its share of the rows.

Rows are shared out evenly by tokens, not by count. Within a window of rows, sequences are sorted by length, since
those of one length share a call of attention; a window is written before the next begins.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from utils import distributed
from utils.batching import PackedTokens, Sequences, pack
from utils.embedding_store import (
    EmbeddingMatrix,
    EmbeddingSource,
    ShardWriter,
    find_embeddings,
    forget_embeddings,
    record_embeddings,
)
from utils.errors import InputError
from utils.logs import progress, say
from utils.precision import Precision
from utils.token_store import TokenStore

WINDOW = 8_192


class SequenceEncoder(Protocol):
    """What encoding asks of an encoder: `PackedTokens` of n sequences → float (n, embedding_dim)."""

    embedding_dim: int
    config: PreTrainedConfig

    def __call__(self, tokens: PackedTokens) -> Tensor: ...


def check_length(config: PreTrainedConfig, name: str, max_length: int, chunk_length: int | None = None) -> None:
    """`InputError` where sequences of store NAME may be longer than the encoder of this configuration has positions.

    A row has up to `max_length` tokens and is cut into sequences of `chunk_length`, if given.
    """
    longest = min(max_length, chunk_length or max_length)
    positions = config.max_position_embeddings
    if config.model_type == "roberta":
        positions -= config.pad_token_id + 1  # they are counted from there on
    if longest > positions:
        raise InputError(
            f"{name} may have {longest} tokens a text, and the encoder has positions for {positions}; tokenize "
            "with a shorter --max_seq_length or --max_query_length, or take another encoder"
        )


def open_sequences(
    folder: str | Path, tokenizer, config: PreTrainedConfig, max_length: int, chunk_length: int | None = None
) -> Sequences:
    """The sequences of a token store, which must be of this tokenizer and length and fit the encoder."""
    store = TokenStore(folder).expect(tokenizer, max_length)
    check_length(config, store.folder.name, max_length, chunk_length)
    return Sequences(store, chunk_length)


def share_of_rows(offsets: np.ndarray, shard: int, shards: int) -> tuple[int, int]:
    """The rows start … stop - 1 of one shard, so that every shard has about the same number of tokens."""
    cuts = np.searchsorted(offsets, offsets[-1] * np.arange(1, shards) / shards)
    bounds = [0, *cuts.tolist(), len(offsets) - 1]
    return bounds[shard], bounds[shard + 1]


@torch.inference_mode()
def encode(
    encoder: SequenceEncoder,
    sequences: Sequences,
    numbers: np.ndarray,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> np.ndarray:
    """Vectors of these sequences, float32 (n, dimensions), in their order; batches run from long to short."""
    vectors = np.empty((len(numbers), encoder.embedding_dim), dtype=np.float32)
    order = np.argsort(-sequences.lengths_of(numbers), kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = pack([(sequences, numbers[chosen])]).to(device)
        with precision.autocast():
            vectors[chosen] = encoder(tokens).float().cpu().numpy()
    return vectors


def encode_store(
    encoder: SequenceEncoder,
    store: TokenStore,
    name: str,
    folder: str | Path,
    weights: str,
    *,
    batch_size: int,
    chunk_length: int | None,
    device: torch.device,
    precision: Precision,
) -> EmbeddingMatrix:
    """The embeddings of a token store as a matrix in `folder`: found there, or encoded by all processes together.

    `weights` is the checkpoint's fingerprint. The encoder must be on `device` and in eval mode. Raises `InputError`
    where a text may be longer than the encoder can read, and where a vector holds a value that is not finite.
    """
    check_length(encoder.config, name, store.meta.max_length, chunk_length)
    sequences = Sequences(store, chunk_length)
    source = EmbeddingSource(
        weights=weights,
        tokens=store.meta.sha256,
        max_length=store.meta.max_length,
        chunk_length=chunk_length or 0,
        precision=str(precision.dtype).removeprefix("torch."),
        rows=len(sequences),
        dimensions=encoder.embedding_dim,
    )
    found = distributed.on_main(lambda: find_embeddings(folder, name, source) is not None)
    if found:
        say(f"{name}: {len(sequences):,} embeddings reused from {folder}")
        return find_embeddings(folder, name, source)

    distributed.on_main(lambda: forget_embeddings(folder, name))  # the others go on only after that
    shard, shards = distributed.rank(), distributed.world_size()
    first, last = share_of_rows(sequences.offsets, shard, shards)
    writer = ShardWriter(folder, name, shard, shards, last - first, source)
    with progress(total=last - first, initial=writer.done, unit="texts", label=f"encode {name}") as bar:
        for start in range(first + writer.done, last, WINDOW):
            numbers = np.arange(start, min(start + WINDOW, last))
            vectors = encode(encoder, sequences, numbers, batch_size, device, precision)
            if not np.isfinite(vectors).all():
                row = numbers[~np.isfinite(vectors).all(axis=1)][0]
                raise InputError(
                    f"the vector of sequence {row} of {name} is not finite: the checkpoint is broken", folder
                )
            writer.write(numbers - first, vectors)
            writer.mark(int(numbers[-1]) + 1 - first)
            bar.update(len(numbers))
    writer.close()
    distributed.barrier()
    distributed.on_main(lambda: len(record_embeddings(folder, name, source, shards)))
    say(f"{name}: {len(sequences):,} texts encoded into {folder}")
    return find_embeddings(folder, name, source)
