"""What drivers/run_ann_data_gen.py mines with, made from its arguments: encoder, embeddings, rankings, negatives."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from drivers.mining_arguments import Arguments
from model.encoders import load_store_encoder
from model.reading import find_reading
from utils.batching import Sequences
from utils.mining.drawing import Drawn, draw_for_all
from utils.mining.encoding import StoreEncoder
from utils.mining.evaluation import DEPTH, gather_rankings
from utils.mining.search import score_pairs, search_rows
from utils.runtime import distributed
from utils.runtime.precision import choose_precision
from utils.stores.checkpoint import checkpoint_step
from utils.stores.embedding_store import EmbeddingMatrix
from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenStore


def open_stores(args: Arguments, *names: str) -> list[TokenStore]:
    """Token stores of the training collection."""
    return [TokenStore(Path(args.data_dir, name)) for name in names]


def load(args: Arguments, checkpoint: str, device: torch.device) -> StoreEncoder:
    """The checkpoint, ready to encode token stores."""
    how = {"batch_size": args.per_gpu_eval_batch_size, "precision": choose_precision(args.fp16, device)}
    reading = distributed.on_main(lambda: find_reading(checkpoint, **args.reading))
    for each in args.filters:
        each.check_reading(reading.normalized)  # before anything is encoded, which may take hours
    what = checkpoint, reading, args.cache_dir or None
    return load_store_encoder(*what, **how, device=device, dtype=args.embedding_dtype)


def embedding_dir(args: Arguments, checkpoint: str) -> Path:
    """Where embeddings of this checkpoint are found or kept."""
    step = checkpoint_step(checkpoint, args.training_dir)
    own = Path(args.output_dir, f"embeddings-{step}")
    return own if step else Path(args.public_ann_data_dir or own)


def encode_all(args: Arguments, encoder: StoreEncoder, folder: Path) -> dict[str, EmbeddingMatrix]:
    """The embeddings of both query sets and of the passages."""
    data, query_length = Path(args.data_dir), args.max_query_length
    stores = [encoder.open_queries(data / name, query_length) for name in ("train-query", "dev-query")]
    stores.append(encoder.open_passages(data / "passages", args.max_seq_length))
    return {sequences.store.folder.name: encoder.encode(sequences, folder) for sequences in stores}


def search(
    args: Arguments,
    number: int,
    embeddings: dict[str, EmbeddingMatrix],
    chunk_length: int | None,
    train_qrels: Qrels,
    device: torch.device,
) -> tuple[tuple[np.ndarray, np.ndarray], Drawn]:
    """What dev queries find (rows, scores), training queries' negatives: all on the main process, else its share."""
    train_queries, passages = open_stores(args, "train-query", "passages")
    sequences = Sequences(passages, chunk_length)

    def rankings(name: str, depth: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        exchange, index = Path(args.output_dir, f"search-{name}"), (args.index_factory, args.index_parameters)
        return search_rows(embeddings[name], embeddings["passages"], sequences, depth, device, exchange, *index)

    dev = gather_rankings(rankings("dev-query", DEPTH + 1))
    scoring = device if args.index_factory == "Flat" else torch.device("cpu")  # where the rankings' scores are made
    score = partial(score_pairs, embeddings["train-query"], embeddings["passages"], sequences, device=scoring)
    drawn = draw_for_all(
        rankings("train-query", args.topk_training),
        train_queries,
        passages,
        train_qrels,
        score,
        args.negative_sample,
        given=args.given_negatives and number == 0,
        filters=args.filters,
        seed=args.seed,
        episode=number,
    )
    return dev, drawn
