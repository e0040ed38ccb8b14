"""What is trained: an encoder, and a loss on the scores of its vectors."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import PAIRWISE, Loss
from utils.samples import Batch


class Retriever(nn.Module):
    """An encoder and the loss on its vectors: a `Batch` of B samples → losses (B,), float32 or wider.

    Scores are dot products times the reading's scale, 1 over the temperature; of a passage in several sequences, the
    best one's.

    Queries and passages go through one encoder in one call of this module, as DistributedDataParallel needs it.
    Each distinct text is encoded once; its vector serves every sample that holds it. `watch`, if given, is told the
    cluster of every token, and of every text.
    """

    def __init__(self, encoder: Encoder, watch: GroupGradients | None = None, loss: Loss = PAIRWISE) -> None:
        super().__init__()
        self.encoder, self.watch, self.loss = encoder, watch, loss

    def forward(self, batch: Batch) -> Tensor:
        with self.watch.rows(batch.token_clusters, batch.sequence_clusters) if self.watch else nullcontext():
            vectors = self.encoder(batch.tokens)  # n, D
        # Scores run to hundreds, where the step of bfloat16 is 2: they are formed in float32.
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        with torch.autocast(vectors.device.type, enabled=False):
            products = (self.encoder.reading.scale * vectors[batch.query]) @ vectors.T  # B, n
        scores = (
            products.gather(1, batch.candidates.flatten(1)).view(batch.candidates.shape).amax(2)
        )  # B, J, C → B, J
        return self.loss.of_scores(scores, batch.allowed) * batch.weights
