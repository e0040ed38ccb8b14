"""The training objectives: ERM, and those that weigh the clusters of the queries.

All minimise L = Σ_i c_i l_i over the samples of a step, of all processes and accumulated batches together, and differ
in the coefficients c_i alone. What a step has shown then sets the weights of the next. So a step is always:
coefficients, one backward pass, `update`.

Below, K is the number of clusters, n_g the samples of cluster g in the step, B = Σ n_g, f_g the mean loss of cluster
g, and P the clusters that are present, n_g > 0. An objective has a printable name, its options included, such as
`idro+keep+normalized`. Every state is a buffer, so that `state_dict` holds it. This module needs torch alone.
"""

from itertools import combinations

import torch
from torch import Tensor, nn

OPTIONS = {  # of each kind of objective, in the order in which its name has them
    "erm": (),
    "balanced": (),
    "dro-greedy": ("normalized",),
    "idro": ("keep", "normalized"),
}
OBJECTIVES = tuple(
    "+".join([kind, *chosen])
    for kind, options in OPTIONS.items()
    for count in range(len(options) + 1)
    for chosen in combinations(options, count)
)


class ERM(nn.Module):
    """Empirical risk minimisation: L = (1/B) Σ_i l_i.

    `eps` is the least weight of a cluster, and `drops_absent` says that one which is absent from a step falls to it.
    """

    name = "erm"
    needs_gradient_products = False
    drops_absent = False
    eps = 0.0

    def __init__(self, n_groups: int = 1) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((n_groups,), 1 / n_groups))

    def factors(self, counts: Tensor) -> Tensor:
        """The coefficient of a sample of each cluster, (K,), from the counts n_g, (K,) int64."""
        return (1 / counts.sum()).expand(len(counts))

    def coefficients(self, clusters: Tensor, counts: Tensor) -> Tensor:
        """The c_i, (B',), of samples with these clusters, (B',) int64; 0 where the cluster is -1."""
        return self.factors(counts)[clusters.clamp(min=0)] * (clusters >= 0)

    def update(self, losses: Tensor, counts: Tensor, gradient_products: Tensor | None = None) -> None:
        """Takes in the step: mean losses f_g (K,), counts n_g (K,), and <∇f_g, ∇f_h> (K, K) where it is asked for.

        The products may be scaled by any positive s_g s_h. Entries of absent clusters have no meaning.
        """


class Balanced(ERM):
    """All clusters that are present count alike: L = (1/|P|) Σ_{g in P} f_g.

    The usual baseline where groups differ in size (re-weighting by the inverse of a group's frequency), here by the
    step's own counts. An objective that learns weights must beat it.
    """

    name = "balanced"

    def factors(self, counts: Tensor) -> Tensor:
        return 1 / ((counts > 0).sum() * counts.clamp(min=1))


class GreedyDRO(ERM):
    """DRO-greedy after group DRO (Sagawa et al., arXiv:1911.08731): the hardest clusters that make a share alpha.

    Running means with decay `ema` are kept of each cluster's loss and share of the samples. From the highest mean
    loss down, clusters weigh 1/alpha until they cover a share alpha, the next one has what is left, and all others
    eps; L = (1/B) Σ_g w_g Σ_{i in g} l_i. The first step of an episode has nothing to go by and is ERM's.

    With `normalize` (our addition) L = Σ_g w_g Σ_{i in g} l_i / Σ_g w_g n_g, see `normalized`. A cluster that is
    absent keeps its running mean, and so its rank among the others, in any case.
    """

    def __init__(self, n_groups: int, alpha: float, ema: float, eps: float, *, normalize: bool = False) -> None:
        _check("alpha", alpha, 0 < alpha <= 1, "DRO-greedy needs a share of the data above 0, at most 1")
        _check("ema", ema, 0 <= ema <= 1, "DRO-greedy needs a decay from 0 to 1")
        _check("eps", eps, eps >= 0, "DRO-greedy needs a weight of at least 0")
        super().__init__(n_groups)
        self.name = _name("dro-greedy", normalized=normalize)
        self.alpha, self.ema, self.eps, self.normalize = alpha, ema, eps, normalize
        self.weights.fill_(1)
        self.register_buffer("mean_loss", torch.zeros(n_groups))
        self.register_buffer("share", torch.zeros(n_groups))
        self.register_buffer("seen", torch.zeros(n_groups, dtype=torch.bool))

    def factors(self, counts: Tensor) -> Tensor:
        factors = self.weights / counts.sum()
        return normalized(factors, counts) if self.normalize else factors

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

    That is the published rule, by which a cluster falls to eps once it is absent. Two options of ours, for steps that
    hold a part of the clusters only. With `keep_absent`, those present share out among themselves what they had
    together before, and those absent keep theirs:

        s   = Σ_{g in P} w_g;  u ← u - max_{g in P} u_g
        w_g ← max(s · w_g^ema · exp(u_g) / Σ_{h in P} w_h^ema · exp(u_h), eps)        for g in P

    With `normalize`, L = Σ_g w_g f_g / Σ_{g in P} w_g, see `normalized`.

    eps must be above 0. A cluster of weight 0 would keep it for good, since 0^ema is 0, and where all clusters of a
    step had it, w / Σ w would be 0 / 0.
    """

    needs_gradient_products = True

    def __init__(
        self,
        n_groups: int,
        alpha: float,
        ema: float,
        rho: float,
        eps: float,
        *,
        keep_absent: bool = False,
        normalize: bool = False,
    ) -> None:
        _check("alpha", alpha, alpha >= 0, "iDRO needs a power of at least 0, since a loss can be 0")
        _check("eps", eps, eps > 0, "iDRO needs a weight above 0, since one of 0 stays 0, and of such alone is 0 / 0")
        super().__init__(n_groups)
        self.name = _name("idro", keep=keep_absent, normalized=normalize)
        self.alpha, self.ema, self.rho, self.eps = alpha, ema, rho, eps
        self.keep_absent, self.normalize = keep_absent, normalize
        self.drops_absent = not keep_absent

    def factors(self, counts: Tensor) -> Tensor:
        factors = self.weights / counts.clamp(min=1)
        return normalized(factors, counts) if self.normalize else factors

    def update(self, losses: Tensor, counts: Tensor, gradient_products: Tensor | None = None) -> None:
        present = counts > 0
        norms = gradient_products.diagonal().clamp(min=0).sqrt()
        cosines = gradient_products / (norms[:, None] * norms).clamp(min=torch.finfo(norms.dtype).tiny)
        power = losses.clamp(min=0) ** self.alpha
        rewards = torch.where(present[:, None] & present, power[:, None] * power * cosines, 0)
        utility = self.rho * rewards.mean(1)
        if self.keep_absent:
            utility = torch.where(present, utility, -torch.inf)
        weights = self.weights**self.ema * torch.exp(utility - utility.max()) * present
        shares = weights / weights.sum()
        if self.keep_absent:
            together = (self.weights * present).sum()
            self.weights.copy_(torch.where(present, (together * shares).clamp(min=self.eps), self.weights))
        else:
            self.weights.copy_(shares.clamp(min=self.eps))


def normalized(factors: Tensor, counts: Tensor) -> Tensor:
    """The factors (K,) divided by Σ_g n_g factor_g, so that the coefficients of a step's samples sum to 1.

    How large a step is then does not depend on which clusters happen to be in it: L is a weighted mean of the losses.
    """
    return factors / (factors * counts).sum().clamp(min=torch.finfo(factors.dtype).tiny)


def _check(name: str, value: float, holds: bool, wanted: str) -> None:
    """ValueError, which begins with the constant's name, for a value of which the equations make nothing."""
    if not holds:
        raise ValueError(f"{name} is {value:g}; {wanted}")


def _name(kind: str, **options: bool) -> str:
    return "+".join([kind, *(option for option, on in options.items() if on)])


def objective_name(kind: str, *, keep_absent: bool = False, normalize: bool = False) -> str:
    """The name of an objective of that kind, in upper or lower case, with these options, one of `OBJECTIVES`.

    ValueError where there is no such kind, or where an option would change nothing of it.
    """
    kind = kind.lower()
    if kind not in OPTIONS:
        raise ValueError(f"the objective {kind!r} is unknown; there are {', '.join(OPTIONS)}")
    if keep_absent and "keep" not in OPTIONS[kind]:
        raise ValueError(f"{kind} takes no weight from a cluster for its absence, so that there is nothing to keep")
    if normalize and "normalized" not in OPTIONS[kind]:
        raise ValueError(f"the coefficients of {kind} sum to 1 in every step as it is")
    return _name(kind, keep=keep_absent, normalized=normalize)


def make_objective(name: str, n_groups: int, *, alpha: float, ema: float, rho: float, eps: float) -> ERM:
    """The objective of that name, in upper or lower case.

    ValueError with the names that there are, or for a constant that it cannot have.
    """
    name = name.lower()
    if name not in OBJECTIVES:
        raise ValueError(f"the objective {name!r} is unknown; there are {', '.join(OBJECTIVES)}")
    kind, *options = name.split("+")
    normalize = "normalized" in options
    if kind == "erm":
        return ERM(n_groups)
    if kind == "balanced":
        return Balanced(n_groups)
    if kind == "dro-greedy":
        return GreedyDRO(n_groups, alpha=alpha, ema=ema, eps=eps, normalize=normalize)
    keep = "keep" in options
    return IDRO(n_groups, alpha=alpha, ema=ema, rho=rho, eps=eps, keep_absent=keep, normalize=normalize)
