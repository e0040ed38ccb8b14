"""The objectives against independent transcriptions of their definitions, loop by loop in float64."""

import math

import numpy as np
import pytest
import torch

from model.dro import ERM, IDRO, OBJECTIVES, OPTIONS, GreedyDRO, make_objective, objective_name

K = 7
SETTINGS = {"alpha": 0.4, "ema": 0.1, "rho": 0.5, "eps": 0.01}


def random_step(generator, k=K, present=None):
    """Counts with absent clusters, or those of `present` alone, mean losses and a matrix of gradients' products."""
    counts = generator.integers(0, 4, size=k)
    counts[generator.integers(k)] += 1
    if present is not None:
        counts = np.where(np.isin(np.arange(k), present), counts + 1, 0)
    losses = generator.gamma(2.0, size=k) * (counts > 0)
    gradients = generator.normal(size=(k, 5)) * (counts > 0)[:, None] + 0.3 * (counts > 0)[:, None]
    return counts, losses, gradients @ gradients.T


def random_steps(seed, k=K, steps=20):
    """Steps of all kinds: with some clusters, with all of them, with one alone, and the one that was alone gone."""
    generator = np.random.default_rng(seed)
    alone, gone = [seed % k], [g for g in range(k) if g != seed % k] or [0]
    kinds = [None, None, range(k), None, alone, alone, gone, None]
    return [random_step(generator, k, kinds[step % len(kinds)]) for step in range(steps)]


@pytest.fixture
def float64():
    """Buffers, and quotients of whole numbers, are of this type from the start."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Reference:
    """An objective in words of its own: its `w`, and how a sample weighs and w changes by them."""

    def __init__(self, name, k, alpha, ema, rho, eps):
        self.kind, *self.options = name.split("+")
        self.k, self.alpha, self.ema, self.rho, self.eps = k, alpha, ema, rho, eps
        self.w = [1.0] * k if self.kind == "dro-greedy" else [1 / k] * k
        self.loss, self.share = [None] * k, None

    def coefficients(self, samples):
        """Of samples, of which the clusters are told."""
        n = [samples.count(g) for g in range(self.k)]
        of = {
            "erm": lambda g: 1 / len(samples),
            "balanced": lambda g: 1 / len(set(samples)) / n[g],
            "dro-greedy": lambda g: self.w[g] / len(samples),
            "idro": lambda g: self.w[g] / n[g],
        }
        found = [of[self.kind](g) for g in samples]
        return [c / math.fsum(found) for c in found] if "normalized" in self.options else found

    def update(self, n, f, gram):
        if self.kind == "dro-greedy":
            self.update_greedy(n, f)
        elif self.kind == "idro":
            self.update_idro(n, f, gram)

    def update_greedy(self, n, f):
        """Clusters are taken one by one until the share is spent."""
        for g in range(self.k):
            if n[g]:
                self.loss[g] = f[g] if self.loss[g] is None else (1 - self.ema) * self.loss[g] + self.ema * f[g]
        now = [count / sum(n) for count in n]
        if self.share is not None:
            now = [(1 - self.ema) * old + self.ema * new for old, new in zip(self.share, now, strict=True)]
        self.share, budget = now, self.alpha
        for g in sorted(range(self.k), key=lambda g: -(self.loss[g] or 0.0)):
            taken = min(self.share[g], budget)
            self.w[g] = max(self.eps, taken / self.alpha / self.share[g] if self.share[g] else 0.0)
            if taken == self.share[g] and taken > 0:
                self.w[g] = 1 / self.alpha
            budget = max(0.0, budget - taken)

    def update_idro(self, n, f, gram):
        present = [g for g in range(self.k) if n[g]]
        raw = {}
        for g in present:
            utility = 0.0
            for h in present:
                cosine = gram[g][h] / math.sqrt(gram[g][g] * gram[h][h])
                utility += (f[g] * f[h]) ** self.alpha * cosine
            raw[g] = self.w[g] ** self.ema * math.exp(self.rho * utility / self.k)  # what is common cancels out below
        if "keep" in self.options:
            had = sum(self.w[g] for g in present)
            for g in present:
                self.w[g] = max(self.eps, had * raw[g] / sum(raw.values()))
        else:
            self.w = [max(self.eps, raw.get(g, 0.0) / sum(raw.values())) for g in range(self.k)]


@pytest.mark.parametrize(("k", "eps", "seed"), [(K, 0.01, 0), (K, 0.12, 1), (K, 0.12, 2), (1, 0.01, 3)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_follows_its_equations_over_20_steps(float64, name, k, eps, seed):
    settings = SETTINGS | {"eps": eps}
    objective, reference = make_objective(name, k, **settings), Reference(name, k, **settings)
    assert objective.name == name
    lowest = 1.0
    for counts, losses, gram in random_steps(seed, k):
        samples = np.random.default_rng(seed).permutation(np.repeat(np.arange(k), counts)).tolist()
        found = objective.coefficients(torch.tensor(samples), torch.tensor(counts))
        assert found.tolist() == pytest.approx(reference.coefficients(samples), rel=1e-9)
        if "normalized" in name or name in ("erm", "balanced"):
            assert float(found.sum()) == pytest.approx(1)
        objective.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram))
        reference.update(counts.tolist(), losses.tolist(), gram.tolist())
        assert objective.weights.tolist() == pytest.approx(reference.w, rel=1e-9)
        lowest = min(lowest, *objective.weights.tolist())
    if objective.eps > 0.1:
        assert lowest == objective.eps, "some step had weights at the floor"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sample_that_keeps_company_has_no_weight(name):
    objective = make_objective(name, 2, **SETTINGS)
    got = objective.coefficients(torch.tensor([0, -1, 1]), torch.tensor([1, 1]))
    assert got[1] == 0
    assert (got[[0, 2]] > 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_goes_on_from_its_state(name):
    steps = [[torch.tensor(value) for value in step] for step in random_steps(1, steps=6)]
    one = make_objective(name, K, **SETTINGS).double()
    for counts, losses, gram in steps[:3]:
        one.update(losses, counts, gram)
    other = make_objective(name.upper(), K, **SETTINGS).double()
    other.load_state_dict(
        {key: torch.tensor(value.tolist(), dtype=value.dtype) for key, value in one.state_dict().items()}
    )
    for counts, losses, gram in steps[3:]:
        one.update(losses, counts, gram)
        other.update(losses, counts, gram)
    assert torch.equal(one.weights, other.weights)


def test_balanced_is_the_mean_over_the_clusters_that_are_present():
    objective, losses = (
        make_objective("balanced", 3, **SETTINGS).double(),
        torch.tensor([1.0, 2.0, 3.0, 9.0]).double(),
    )
    coefficients = objective.coefficients(torch.tensor([0, 0, 0, 2]), torch.tensor([3, 0, 1]))
    assert float((coefficients * losses).sum()) == pytest.approx((2 + 9) / 2)


def test_by_the_published_rule_an_absent_cluster_falls_to_eps_and_with_keep_it_does_not():
    generator = np.random.default_rng(0)
    step = [torch.tensor(value) for value in random_step(generator, present=[0, 1, 2])]
    for name, absent in (("idro", SETTINGS["eps"]), ("idro+keep", 1 / K)):
        objective = make_objective(name, K, **SETTINGS).double()
        assert objective.drops_absent == (name == "idro")
        objective.update(step[1], step[0], step[2])
        assert objective.weights[3:].tolist() == pytest.approx([absent] * (K - 3))
    assert float(objective.weights.sum()) == pytest.approx(1), "what is present shares what it had before"


def test_idro_does_not_see_positive_factors_of_the_gradients():
    generator = np.random.default_rng(0)
    counts, losses, gram = random_step(generator)
    scale = generator.uniform(0.1, 10, size=K)
    one, other = (IDRO(K, 0.25, 0.1, 0.5, 0.01).double() for _ in range(2))
    one.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram))
    other.update(torch.tensor(losses), torch.tensor(counts), torch.tensor(gram * scale[:, None] * scale))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-12, atol=0)


def test_dro_greedy_weights_times_shares_cover_the_data_once():
    objective = GreedyDRO(4, alpha=0.5, ema=0.1, eps=0.0).double()
    counts = torch.tensor([4, 3, 2, 1])
    objective.update(torch.tensor([1.0, 4.0, 3.0, 2.0], dtype=torch.float64), counts)
    shares = counts / counts.sum()
    assert float((objective.weights * shares).sum()) == pytest.approx(1)
    assert objective.weights.tolist() == pytest.approx([0, 2, 2, 0])


def test_a_step_of_clusters_without_any_weight_has_coefficients_of_0_also_where_they_are_normalized():
    for name in ("dro-greedy", "dro-greedy+normalized"):
        objective = make_objective(name, 2, **SETTINGS | {"eps": 0.0})
        objective.weights.copy_(torch.tensor([2.0, 0.0]))
        assert objective.coefficients(torch.tensor([1, 1]), torch.tensor([0, 2])).tolist() == [0, 0]


def test_names_are_made_of_a_kind_and_its_options_and_the_published_ones_have_none():
    assert {objective_name(kind.upper()) for kind in OPTIONS} == {"erm", "balanced", "dro-greedy", "idro"}
    assert set(OPTIONS) < set(OBJECTIVES)
    assert len(OBJECTIVES) == len(set(OBJECTIVES)) == 8
    assert objective_name("iDRO", keep_absent=True, normalize=True) == "idro+keep+normalized"
    assert ERM(2).name == "erm"


@pytest.mark.parametrize(
    ("kind", "option", "reason"),
    [
        ("vrex", {}, "there are erm, balanced, dro-greedy, idro"),
        ("idro+keep", {}, "the objective 'idro.keep' is unknown"),
        *((kind, {"keep_absent": True}, f"{kind} takes no weight") for kind in ("erm", "balanced", "dro-greedy")),
        *((kind, {"normalize": True}, f"coefficients of {kind} sum to 1") for kind in ("erm", "balanced")),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(kind, option, reason):
    with pytest.raises(ValueError, match=reason):
        objective_name(kind, **option)


@pytest.mark.parametrize(
    ("name", "constant", "values"),
    [
        *((name, "eps", (0.0, -0.1, math.nan)) for name in OBJECTIVES if name.startswith("idro")),
        *(("idro", "alpha", (-0.1,)), ("dro-greedy", "eps", (-0.1,))),
        *(("dro-greedy+normalized", "alpha", (0.0, 1.1)), ("dro-greedy", "ema", (-0.1, 1.1))),
    ],
)
def test_constants_of_which_the_equations_make_nothing_are_refused_by_their_names(name, constant, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{constant} is {value:g}; .* needs"):
            make_objective(name, K, **SETTINGS | {constant: value})
    make_objective("erm", K, **SETTINGS | {constant: values[0]})  # which has no use for it


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name.startswith("idro")])
def test_the_least_eps_of_idro_keeps_weights_finite_whichever_clusters_follow_each_other(name):
    objective = make_objective(name, K, **SETTINGS | {"eps": 1e-6})
    generator = np.random.default_rng(0)
    for present in ([0, 1], [2, 3], [4], [5, 6], range(K)):
        counts, losses, gram = (torch.tensor(value) for value in random_step(generator, present=present))
        objective.update(losses.float(), counts, gram.float())
        assert objective.weights.isfinite().all()
        assert (objective.weights > 0).all()


@pytest.mark.parametrize("name", ["vrex", "erm+keep", "idro+normalized+keep", "idro+"])
def test_an_unknown_objective_is_refused_with_the_names_that_there_are(name):
    with pytest.raises(ValueError, match="idro"):
        make_objective(name, K, **SETTINGS)
