"""Whether one run is better than another: paired tests over queries, and intervals, for one collection or several.

What is compared is the mean over collections of the means over their queries, as BEIR's averages are. A collection
is a list of parts, nearly always of one; several (CQADupStack's forums) count alike, however many queries they have.

- The interval is a percentile bootstrap: queries are drawn with replacement within each part (Efron and Tibshirani,
  An Introduction to the Bootstrap, 1993), with scipy.
- The p-value is of a two-sided paired randomisation test: if the runs were alike, each query's difference might as
  well have the other sign (Smucker, Allan and Carterette, CIKM 2007), with scipy.
- Several tests are corrected by Holm's step-down procedure (Scandinavian Journal of Statistics 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9_999
CONFIDENCE = 0.95
BATCH_NUMBERS = 2**24  # drawn at once: 128 MB

Parts = Sequence[np.ndarray]  # a collection: of each part the values of its queries, float64 (queries,)


@dataclass(frozen=True)
class Difference:
    """By how much the second run is better: the mean, its interval's ends, and the p-value that it is chance."""

    mean: float
    low: float
    high: float
    p: float


def compare(first: Sequence[Parts], second: Sequence[Parts], seed: int = 0) -> Difference:
    """Compares two runs on the same collections, with parts and queries in one order in both."""
    differences = [[b - a for a, b in zip(*parts, strict=True)] for parts in zip(first, second, strict=True)]
    low, high = bootstrap_interval(differences, seed)
    return Difference(mean_of_means(differences), low, high, randomisation_test(differences, seed))


def mean_of_means(collections: Sequence[Parts]) -> float:
    """The mean over collections of the mean over their parts of the mean of their values."""
    return float(sum(weight * values.mean() for values, weight in _weighted_parts(collections)))


def _weighted_parts(collections: Sequence[Parts]) -> list[tuple[np.ndarray, float]]:
    """All parts, each with its share of `mean_of_means`."""
    return [(values, 1 / (len(collections) * len(parts))) for parts in collections for values in parts]


def bootstrap_interval(collections: Sequence[Parts], seed: int = 0) -> tuple[float, float]:
    """The ends of the `CONFIDENCE` interval of `mean_of_means`; both are the mean where no value differs."""
    parts = _weighted_parts(collections)
    if all(np.ptp(values) == 0 for values, _ in parts):
        mean = mean_of_means(collections)
        return mean, mean

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        return sum(weight * sample.mean(axis=axis) for sample, (_, weight) in zip(samples, parts, strict=True))

    # One query alone cannot be drawn otherwise, which scipy refuses: twice the same is the same.
    samples = [np.repeat(values, 2) if len(values) == 1 else values for values, _ in parts]
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // sum(map(len, samples))),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def randomisation_test(collections: Sequence[Parts], seed: int = 0) -> float:
    """The two-sided p-value that `mean_of_means` of these differences is 0, by changing their signs."""
    shares = np.concatenate([values * weight / len(values) for values, weight in _weighted_parts(collections)])
    shares = shares[shares != 0]  # a change of sign changes nothing there
    if len(shares) < 2:
        return 1.0  # of one, both signs are equally far from 0
    found = stats.permutation_test(
        (shares,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(shares)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below a level, the difference stands after the correction."""
    adjusted, highest = np.empty(len(p_values)), 0.0
    for done, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[i]))
        adjusted[i] = highest
    return adjusted.tolist()
