"""The training objectives: ERM, and two that re-weight the clusters of the queries.

All three minimise L = Σ_i c_i l_i over the triplets of a step, of all processes and accumulated batches together,
and differ in the coefficients c_i alone. What a step has shown then sets the weights of the next. So a step is
always: coefficients, one backward pass, `update`.

Below, K is the number of clusters, n_g the triplets of cluster g in the step, B = Σ n_g, f_g the mean loss of
cluster g. Every state is a buffer, so that `state_dict` holds it. This module needs torch alone.
"""

import torch
from torch import Tensor, nn


class ERM(nn.Module):
    """Empirical risk minimisation: L = (1/B) Σ_i l_i."""

    needs_gradient_products = False

    def __init__(self, n_groups: int = 1) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((n_groups,), 1 / n_groups))

    def factors(self, counts: Tensor) -> Tensor:
        """The coefficient of a triplet of each cluster, (K,), from the counts n_g, (K,) int64."""
        return (1 / counts.sum()).expand(len(counts))

    def coefficients(self, clusters: Tensor, counts: Tensor) -> Tensor:
        """The c_i, (B',), of triplets with these clusters, (B',) int64; 0 where the cluster is -1."""
        return self.factors(counts)[clusters.clamp(min=0)] * (clusters >= 0)

    def update(self, losses: Tensor, counts: Tensor, gradient_products: Tensor | None = None) -> None:
        """Takes in the step: mean losses f_g (K,), counts n_g (K,), and <∇f_g, ∇f_h> (K, K) where it is asked for.

        The products may be scaled by any positive s_g s_h. Entries of absent clusters have no meaning.
        """


class GreedyDRO(ERM):
    """DRO-greedy after group DRO (Sagawa et al., arXiv:1911.08731): the hardest clusters that make a share alpha.

    Running means with decay `ema` are kept of each cluster's loss and share of the triplets. From the highest mean
    loss down, clusters weigh 1/alpha until they cover a share alpha, the next one has what is left, and all others
    eps; L = (1/B) Σ_g w_g Σ_{i in g} l_i. The first step of an episode has nothing to go by and is ERM's.
    """

    def __init__(self, n_groups: int, alpha: float, ema: float, eps: float) -> None:
        super().__init__(n_groups)
        self.alpha, self.ema, self.eps = alpha, ema, eps
        self.weights.fill_(1)
        self.register_buffer("mean_loss", torch.zeros(n_groups))
        self.register_buffer("share", torch.zeros(n_groups))
        self.register_buffer("seen", torch.zeros(n_groups, dtype=torch.bool))

    def factors(self, counts: Tensor) -> Tensor:
        return self.weights / counts.sum()

    def update(self, losses: Tensor, counts: Tensor, gradient_products: Tensor | None = None) -> None:
        present = counts > 0
        running = torch.where(self.seen, torch.lerp(self.mean_loss, losses, self.ema), losses)
        self.mean_loss.copy_(torch.where(present, running, self.mean_loss))
        share = counts.to(self.share.dtype) / counts.sum()
        self.share.copy_(torch.where(self.seen.any(), torch.lerp(self.share, share, self.ema), share))
        self.seen.logical_or_(present)

        order = self.mean_loss.argsort(descending=True, stable=True)
        covered = self.share[order].cumsum(0)
        before = covered - self.share[order]
        left = (self.alpha - before) / (self.alpha * self.share[order].clamp(min=1e-12))
        weights = torch.where(covered <= self.alpha, 1 / self.alpha, torch.where(before < self.alpha, left, self.eps))
        self.weights[order] = weights.clamp(min=self.eps)


class IDRO(ERM):
    """iDRO (Yu et al., COCO-DR, arXiv:2210.15212): favours clusters that are hard and whose gradients agree.

    L = Σ_g w_g f_g. With cos_gh = <∇f_g, ∇f_h> / (|∇f_g| |∇f_h|) over the last layers of the encoder:

        r_gh = (f_g f_h)^alpha · cos_gh        0 where g or h is absent
        u_g  = rho · (1/K) Σ_h r_gh;  u ← u - max u
        w_g  ← w_g^ema · exp(u_g) · [n_g > 0];  w ← w / Σ w;  w_g ← max(w_g, eps)
    """

    needs_gradient_products = True

    def __init__(self, n_groups: int, alpha: float, ema: float, rho: float, eps: float) -> None:
        super().__init__(n_groups)
        self.alpha, self.ema, self.rho, self.eps = alpha, ema, rho, eps

    def factors(self, counts: Tensor) -> Tensor:
        return self.weights / counts.clamp(min=1)

    def update(self, losses: Tensor, counts: Tensor, gradient_products: Tensor | None = None) -> None:
        present = counts > 0
        norms = gradient_products.diagonal().clamp(min=0).sqrt()
        cosines = gradient_products / (norms[:, None] * norms).clamp(min=torch.finfo(norms.dtype).tiny)
        power = losses.clamp(min=0) ** self.alpha
        rewards = torch.where(present[:, None] & present, power[:, None] * power * cosines, 0)
        utility = self.rho * rewards.mean(1)
        weights = self.weights**self.ema * torch.exp(utility - utility.max()) * present
        self.weights.copy_((weights / weights.sum()).clamp(min=self.eps))


OBJECTIVES = ("erm", "dro-greedy", "idro")


def make_objective(name: str, n_groups: int, *, alpha: float, ema: float, rho: float, eps: float) -> ERM:
    """The objective of that name, in upper or lower case; ValueError with the names that there are."""
    name = name.lower()
    if name == "erm":
        return ERM(n_groups)
    if name == "dro-greedy":
        return GreedyDRO(n_groups, alpha=alpha, ema=ema, eps=eps)
    if name == "idro":
        return IDRO(n_groups, alpha=alpha, ema=ema, rho=rho, eps=eps)
    raise ValueError(f"the objective {name!r} is unknown; there are {', '.join(OBJECTIVES)}")
