"""Triplets as the published code trains on them: every text padded to the full length, and nothing shared.

A query stands in the batch once for each of its negatives, and so does its positive. The encoder is run as
transformers runs it, over padding and all; its reading and the loss are those of the others.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.dropout import replace_dropout
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import pairwise_nll
from utils.batching import Sequences
from utils.stores.episode import Episode


@dataclass
class PaddedBatch:
    """B triplets: `texts` are queries, positives and negatives, each token ids and mask, int64 (B, full length)."""

    texts: list[tuple[Tensor, Tensor]]
    clusters: Tensor

    @property
    def tokens(self) -> int:
        return sum(int(mask.sum()) for _, mask in self.texts)

    @property
    def positions(self) -> int:
        return sum(mask.numel() for _, mask in self.texts)

    def to(self, device: torch.device) -> "PaddedBatch":
        return PaddedBatch([(ids.to(device), mask.to(device)) for ids, mask in self.texts], self.clusters.to(device))


def make_padded_batch(
    episode: Episode,
    triplets: np.ndarray,
    queries: Sequences,
    passages: Sequences,
    max_query_length: int,
    max_seq_length: int,
) -> PaddedBatch:
    """The batch of these triplets (their numbers in the mined file's order), from stores whose rows are sequences."""
    lines = episode.line_of(triplets)
    return PaddedBatch(
        texts=[
            _pad(queries, episode.query_rows[lines], max_query_length),
            _pad(passages, episode.positive_rows[lines], max_seq_length),
            _pad(passages, episode.negative_rows[triplets], max_seq_length),
        ],
        clusters=torch.from_numpy(episode.clusters[lines]),
    )


def _pad(source: Sequences, rows: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    columns = np.arange(length)
    mask = columns < source.lengths_of(rows)[:, None]
    ids = np.full(mask.shape, source.pad_token_id, dtype=np.int64)
    ids[mask] = source.tokens[(source.offsets[rows, None] + columns)[mask]]
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


class PaddedRetriever(nn.Module):
    """An encoder and the loss on its vectors: a `PaddedBatch` of B triplets → losses (B,).

    Nothing is watched, and dropout is torch's.
    """

    def __init__(self, encoder: Encoder, watch: GroupGradients | None = None) -> None:
        super().__init__()
        assert watch is None, "padded batches do not say which cluster their rows belong to"
        self.encoder = encoder
        replace_dropout(encoder, nn.Dropout)

    def forward(self, batch: PaddedBatch) -> Tensor:
        query, positive, negative = (self._vectors(ids, mask) for ids, mask in batch.texts)
        query = self.encoder.reading.scale * query
        return pairwise_nll((query * positive).sum(-1), (query * negative).sum(-1))

    def _vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder.model(ids, attention_mask=mask).last_hidden_state.float()  # B, L, H
        if self.encoder.reading.pooling == "cls":
            return self.encoder.finish(hidden[:, 0])
        return self.encoder.finish((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
