"""The losses: what a query's scores say of how well its positive stands out, a number a sample.

A loss sees the scores of each sample's candidates, the positive first. Which passages these are is the other half of
a loss: what it takes for a sample (utils/samples.py).

    pairwise       triplets: a line's positive against one of its negatives, as published
    contrastive    blocks of lines: a line's positive against the distinct passages of all lines of its block

In neither does a text take part in the loss of another cluster than its own, for a block is of one cluster. So the
clusters' gradients come exactly from one backward pass (model/group_gradients.py). Nothing is gathered from other
processes, since a block is never split.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from utils.samples import Blocks, Samples, Triplets


def pairwise_nll(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """l = -log(e^{s+} / (e^{s+} + e^{s-})) = softplus(s- - s+), elementwise, in float32 at least (ANCE, eq. 2)."""
    wide = torch.promote_types(positive_scores.dtype, torch.float32)
    return functional.softplus(negative_scores.to(wide) - positive_scores.to(wide))


def pairwise(scores: Tensor, allowed: Tensor) -> Tensor:
    """`pairwise_nll` of a positive and its negative."""
    return pairwise_nll(*scores.unbind(1))


def contrastive(scores: Tensor, allowed: Tensor) -> Tensor:
    """l = -log(e^{s_0} / Σ_j e^{s_j}) over the allowed candidates j (InfoNCE; van den Oord et al., arXiv:1807.03748).

    It is formed as softplus(log Σ_{j>0} e^{s_j - s_0}), which loses nothing where it is next to 0; 0 where no
    candidate but the positive is allowed.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    ahead = (wide[:, 1:] - wide[:, :1]).masked_fill(~allowed[:, 1:], torch.finfo(wide.dtype).min / 2)
    return functional.softplus(ahead.logsumexp(1))


@dataclass(frozen=True)
class Loss:
    """A loss by its name: `of_scores` gives one number a sample, (B,), float32 or wider, from scores (B, J).

    Its second argument, bool (B, J), says which of the candidates count; of the first, the positive, it is always
    true. `samples` is what the loss takes for a sample, and finds its candidates.
    """

    name: str
    of_scores: Callable[[Tensor, Tensor], Tensor]
    samples: type[Samples]


PAIRWISE = Loss("pairwise", pairwise, Triplets)
CONTRASTIVE = Loss("contrastive", contrastive, Blocks)
LOSSES = {loss.name: loss for loss in (PAIRWISE, CONTRASTIVE)}
