"""The pairwise loss of triplets, and the module that computes it for a batch."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoders import Encoder
from model.group_gradients import GroupGradients
from utils.batching import TripletBatch


def pairwise_nll(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """l = -log(e^{s+} / (e^{s+} + e^{s-})) = softplus(s- - s+), elementwise, in float32 at least (ANCE, eq. 2)."""
    wide = torch.promote_types(positive_scores.dtype, torch.float32)
    return functional.softplus(negative_scores.to(wide) - positive_scores.to(wide))


class TripletModel(nn.Module):
    """An encoder and the loss on its vectors: a `TripletBatch` of B triplets → losses (B,), float32 or wider.

    Scores are dot products times the reading's scale, 1 over the temperature.

    Queries and passages go through one encoder in one call of this module, as DistributedDataParallel needs it.
    Each distinct text is encoded once; its vector serves every triplet that holds it. `watch`, if given, is told the
    cluster of every token, and of every text.
    """

    def __init__(self, encoder: Encoder, watch: GroupGradients | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.watch = watch

    def forward(self, batch: TripletBatch) -> Tensor:
        with self.watch.rows(batch.token_clusters, batch.sequence_clusters) if self.watch else nullcontext():
            vectors = self.encoder(batch.tokens)  # n, D
        # Scores run to hundreds, where the step of bfloat16 is 2: they are formed in float32.
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        query = self.encoder.reading.scale * vectors[batch.query].unsqueeze(1)  # B, 1, D
        positive = (query * vectors[batch.positive]).sum(-1).amax(1)  # B, C, D → B
        negative = (query * vectors[batch.negative]).sum(-1).amax(1)
        return pairwise_nll(positive, negative) * batch.weights
