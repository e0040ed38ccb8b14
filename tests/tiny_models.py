"""Encoders with random weights, small enough that a test can train them, and stores of random rows."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from model import encoders
from model.encoders import Encoder, RobertaDot, ance_head
from model.families import FAMILIES
from model.losses import Loss
from model.reading import Reading, find_reading, published_reading
from utils.samples import Samples
from utils.stores.embedding_store import EmbeddingMatrix, EmbeddingSource, ShardWriter, record_embeddings
from utils.stores.episode import Episode
from utils.stores.known_passages import KnownPassages
from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store

VOCABULARY = 156  # of tests.tiny.tiny_bert_tokenizer, too


def tiny_settings(layers: int, hidden: int, vocabulary: int, positions: int, dropout: float = 0.0) -> dict:
    """What BERT's and RoBERTa's configurations share."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": positions,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.5,
    }


def tiny_bert(
    layers: int = 2, hidden: int = 16, dropout: float = 0.0, seed: int = 0, vocabulary=VOCABULARY, positions=128
) -> Encoder:
    torch.manual_seed(seed)
    config = BertConfig(**tiny_settings(layers, hidden, vocabulary, positions, dropout))
    return Encoder(BertModel(config, add_pooling_layer=False), published_reading("rdot_nll_condenser"))


def tiny_roberta(layers: int = 2, hidden: int = 16, seed: int = 0, vocabulary=VOCABULARY, positions=160) -> Encoder:
    torch.manual_seed(seed)
    settings = tiny_settings(layers, hidden, vocabulary, positions)
    weights = RobertaDot(RobertaConfig(**settings, pad_token_id=1, type_vocab_size=1))
    reading = Reading(head=ance_head(hidden), model_type="rdot_nll")
    return Encoder(weights.roberta, reading, nn.Sequential(weights.embeddingHead, weights.norm))


def tiny_config(
    family: str, layers: int = 3, vocabulary=VOCABULARY, positions=160, window=8, dropout: float = 0.0
) -> PreTrainedConfig:
    """A configuration of any family, with transformers' defaults for all but sizes. `window` is ModernBERT's."""
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": layers, "max_position_embeddings": positions}
    if family == "distilbert":
        widths = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "dropout": dropout, "attention_dropout": dropout}
    elif family == "modernbert":
        dropouts = {f"{place}_dropout": dropout for place in ("embedding", "mlp", "attention")}
        specials = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
        widths = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "local_attention": window}
        widths |= {**dropouts, **specials}
    else:
        widths = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        widths |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return AutoConfig.for_model(family, **sizes, **widths, initializer_range=0.5)


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """transformers' bare encoder, for training, with random numbers in its biases and norms too.

    Padded texts go the way of `attn_implementation="sdpa"`, where the architecture has it.
    """
    torch.manual_seed(seed)
    family = FAMILIES[config.model_type]
    config._attn_implementation = "sdpa" if family.model_class._supports_sdpa else "eager"
    model = family.model_class(config, **family.options)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def load_encoder(
    model_type: str, checkpoint: str, cache_dir: str | None = None, **flags
) -> tuple[Encoder, PreTrainedTokenizerFast]:
    """A checkpoint as the scripts load it with this --model_type and these flags (see `find_reading`)."""
    reading = find_reading(checkpoint, model_type, cache_dir=cache_dir, **flags)
    return encoders.load_encoder(checkpoint, reading, cache_dir)


def padded_vectors(encoder: Encoder, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The vectors of padded texts by transformers' own forward pass: what packed encoding is held to."""
    hidden = encoder.model(input_ids, attention_mask=mask).last_hidden_state
    if encoder.reading.pooling == "cls":
        return encoder.finish(hidden[:, 0])
    return encoder.finish((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def random_store(
    folder: Path, rows: int, longest: int = 24, seed: int = 0, pad_token_id: int = 0, vocabulary: int = VOCABULARY
) -> TokenStore:
    """A store of random rows of 2 … `longest` tokens (5 … vocabulary - 1)."""
    generator = np.random.default_rng(seed)
    tokenizer = TokenizerInfo("random", "0" * 64, vocabulary, pad_token_id)
    source = folder.parent / f"{folder.name}.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("random\n")
    with create_token_store(folder, tokenizer, longest, source) as writer:
        lengths = generator.integers(2, longest + 1, size=rows)
        writer.append(
            [str(row) for row in range(rows)],
            [generator.integers(5, vocabulary, size=length).tolist() for length in lengths],
        )
    return TokenStore(folder)


def random_episode(
    queries: int, passages: int, n_groups: int = 1, lines: int = 40, seed: int = 0, together: int = 0
) -> Episode:
    """Mined lines of 1 … 6 negatives; a query's cluster is the same in all its lines.

    With `together`, lines are in blocks of 1 … that many, of one cluster and of different queries.
    """
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 7, size=lines)
    query_rows = generator.integers(0, queries, size=lines)
    positive_rows = generator.integers(0, passages, size=lines)
    negative_rows = generator.integers(0, passages, size=counts.sum())
    clusters, block_starts = generator.integers(0, n_groups, size=queries), None
    if together:
        chosen = []
        while sum(map(len, chosen)) < lines:
            members = np.flatnonzero(clusters == generator.integers(0, n_groups))
            size = min(len(members), generator.integers(1, together + 1), lines - sum(map(len, chosen)))
            chosen += [generator.choice(members, size, replace=False)] if size else []
        query_rows, block_starts = np.concatenate(chosen), np.cumsum([0, *map(len, chosen)])
    return Episode(
        query_rows=query_rows,
        positive_rows=positive_rows,
        negative_rows=negative_rows,
        starts=np.concatenate([[0], np.cumsum(counts)]),
        weights=np.ones(lines, np.float32),
        clusters=clusters[query_rows],
        n_groups=n_groups,
        block_starts=block_starts,
    )


def random_qrels(episode: Episode, passages: int, seed: int = 0) -> Qrels:
    """Judgments that know the positives of an episode's lines, and some more passages of any grade."""
    generator = np.random.default_rng(seed)
    judged = {(int(q), int(p)): 1 for q, p in zip(episode.query_rows, episode.positive_rows, strict=True)}
    for query in np.unique(episode.query_rows).tolist():
        for passage in generator.choice(passages, 3, replace=False).tolist():
            judged.setdefault((query, passage), int(generator.integers(0, 3)))
    return Qrels.of((query, passage, grade) for (query, passage), grade in judged.items())


def samples_of(
    loss: Loss, episode: Episode, queries: TokenStore, passages: TokenStore, qrels: Qrels | None = None
) -> Samples:
    """What the loss takes for samples; `qrels` are by default `random_qrels`."""
    if not loss.samples.asks_known:
        return loss.samples(episode)
    return loss.samples(episode, KnownPassages(queries, passages, qrels or random_qrels(episode, len(passages))))


def write_embeddings(folder: Path, name: str, tokens: str, vectors: np.ndarray) -> EmbeddingMatrix:
    """A matrix of these vectors, float32 (rows, dimensions), in one shard, as of the store with digest `tokens`."""
    source = EmbeddingSource("w", tokens, 8, 0, "float32", "float32", *vectors.shape)
    writer = ShardWriter(folder, name, 0, 1, np.arange(len(vectors)), source)
    writer.write(vectors)
    writer.close()
    return record_embeddings(folder, name, source, 1)
