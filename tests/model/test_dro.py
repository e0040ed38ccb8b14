"""The objectives against independent transcriptions of their definitions, in numpy and float64."""

import numpy as np
import pytest
import torch

from model.dro import ERM, IDRO, GreedyDRO, make_objective

K = 7


def random_step(generator, k=K):
    """Counts with absent clusters, mean losses and a matrix of gradients' inner products."""
    counts = generator.integers(0, 4, size=k)
    counts[generator.integers(k)] += 1
    losses = generator.gamma(2.0, size=k) * (counts > 0)
    gradients = generator.normal(size=(k, 5)) * (counts > 0)[:, None] + 0.3 * (counts > 0)[:, None]
    return counts, losses, gradients @ gradients.T


def coefficients_per_cluster(objective, counts):
    clusters = torch.arange(len(counts))
    return objective.coefficients(clusters, torch.tensor(counts)).numpy()


def test_erm_weighs_every_triplet_alike():
    counts = np.array([3, 0, 5])
    assert coefficients_per_cluster(ERM(3), counts) == pytest.approx([1 / 8] * 3)


def test_a_triplet_that_keeps_company_has_no_weight():
    for objective in (ERM(2), GreedyDRO(2, 0.5, 0.1, 0.01), IDRO(2, 0.25, 0.1, 0.05, 0.01)):
        got = objective.coefficients(torch.tensor([0, -1, 1]), torch.tensor([1, 1]))
        assert got[1] == 0
        assert (got[[0, 2]] > 0).all()


def idro_step(w, counts, f, gram, alpha, ema, rho, eps):
    """The update rule of the paper, cluster by cluster."""
    k = len(w)
    u = np.zeros(k)
    for g in range(k):
        for h in range(k):
            if counts[g] and counts[h]:
                cosine = gram[g, h] / np.sqrt(gram[g, g] * gram[h, h])
                u[g] += (f[g] * f[h]) ** alpha * cosine
        u[g] *= rho / k
    u -= u.max()
    w = np.array([w[g] ** ema * np.exp(u[g]) if counts[g] else 0.0 for g in range(k)])
    w /= w.sum()
    return np.maximum(w, eps)


@pytest.mark.parametrize("seed", range(3))
def test_idro_follows_the_update_rule_over_20_steps(seed):
    alpha, ema, rho, eps = 0.25, 0.1, 0.5, 0.01
    generator = np.random.default_rng(seed)
    objective = IDRO(K, alpha, ema, rho, eps).double()
    w = np.full(K, 1 / K)
    for _ in range(20):
        counts, losses, gram = random_step(generator)
        assert coefficients_per_cluster(objective, counts)[counts > 0] == pytest.approx(
            (w / np.maximum(counts, 1))[counts > 0]
        )
        objective.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram))
        w = idro_step(w, counts, losses, gram, alpha, ema, rho, eps)
        assert objective.weights.numpy() == pytest.approx(w, rel=1e-12)


def test_idro_does_not_see_positive_factors_of_the_gradients():
    generator = np.random.default_rng(0)
    counts, losses, gram = random_step(generator)
    scale = generator.uniform(0.1, 10, size=K)
    one, other = (IDRO(K, 0.25, 0.1, 0.5, 0.01).double() for _ in range(2))
    one.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram))
    other.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram * scale[:, None] * scale))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-12, atol=0)


class GreedyReference:
    """DRO-greedy in words of its own: clusters are taken one by one until the share is spent."""

    def __init__(self, k, alpha, ema, eps):
        self.alpha, self.ema, self.eps = alpha, ema, eps
        self.loss, self.share, self.w = [None] * k, None, [1.0] * k

    def update(self, f, counts):
        for g, n in enumerate(counts):
            if n:
                self.loss[g] = f[g] if self.loss[g] is None else (1 - self.ema) * self.loss[g] + self.ema * f[g]
        now = [n / sum(counts) for n in counts]
        mixed = (
            now
            if self.share is None
            else [(1 - self.ema) * s + self.ema * n for s, n in zip(self.share, now, strict=True)]
        )
        self.share = mixed
        budget = self.alpha
        for g in sorted(range(len(counts)), key=lambda g: -(self.loss[g] or 0.0)):
            taken = min(self.share[g], budget)
            self.w[g] = max(self.eps, taken / self.alpha / self.share[g] if self.share[g] else 0.0)
            if taken == self.share[g] and taken > 0:
                self.w[g] = 1 / self.alpha
            budget = max(0.0, budget - taken)


@pytest.mark.parametrize("seed", range(3))
def test_dro_greedy_follows_its_definition_over_20_steps(seed):
    alpha, ema, eps = 0.4, 0.1, 0.01
    generator = np.random.default_rng(seed)
    objective, reference = GreedyDRO(K, alpha, ema, eps).double(), GreedyReference(K, alpha, ema, eps)
    for step in range(20):
        counts, losses, _ = random_step(generator)
        seen = np.array([loss is not None for loss in reference.loss])
        got = coefficients_per_cluster(objective, counts) * counts.sum()
        relevant = seen if step else np.ones(K, bool)
        assert got[relevant] == pytest.approx(np.array(reference.w)[relevant], rel=1e-9)
        objective.update(torch.tensor(losses), torch.tensor(counts))
        reference.update(losses, counts)


def test_dro_greedy_weights_times_shares_cover_the_data_once():
    objective = GreedyDRO(4, alpha=0.5, ema=0.1, eps=0.0).double()
    counts = torch.tensor([4, 3, 2, 1])
    objective.update(torch.tensor([1.0, 4.0, 3.0, 2.0], dtype=torch.float64), counts)
    shares = counts / counts.sum()
    assert float((objective.weights * shares).sum()) == pytest.approx(1)
    assert objective.weights.tolist() == pytest.approx([0, 2, 2, 0])


@pytest.mark.parametrize("name", ["dro-greedy", "idro"])
def test_an_objective_goes_on_from_its_state(name):
    generator = np.random.default_rng(1)
    settings = {"alpha": 0.25, "ema": 0.1, "rho": 0.5, "eps": 0.01}
    steps = [[torch.tensor(value) for value in random_step(generator)] for _ in range(6)]
    one = make_objective(name, K, **settings).double()
    for counts, losses, gram in steps[:3]:
        one.update(losses, counts, gram)
    other = make_objective(name.upper(), K, **settings).double()
    other.load_state_dict(
        {key: torch.tensor(value.tolist(), dtype=value.dtype) for key, value in one.state_dict().items()}
    )
    for counts, losses, gram in steps[3:]:
        one.update(losses, counts, gram)
        other.update(losses, counts, gram)
    assert torch.equal(one.weights, other.weights)


def test_an_unknown_objective_is_refused_with_the_names_that_there_are():
    with pytest.raises(ValueError, match="idro"):
        make_objective("vrex", K, alpha=0.1, ema=0.1, rho=0.1, eps=0.1)
