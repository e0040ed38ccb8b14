"""Filters: which candidates are likely to answer the query though nobody judged them, and are no negatives therefore.

What ranks high and is not judged relevant is hard, or it is a positive that the judgments lack: RocketQA
(arXiv:2010.08191) found many of those among the passages at the top, and has a cross-encoder tell them apart. The
filters here need no second model; they go by the miner's own scores, as NV-Retriever (arXiv:2407.15831) does.

To add one: a class with a name that prints, its check and `drops`; a line in `FILTERS`; a flag of the same name in
drivers/mining_arguments.py.

Each filter judges all candidates of a query by themselves, and what any of them drops is gone: their order does not
matter but for the counts, where a candidate counts for the first that drops it. A filter draws nothing, so what it
leaves is drawn as it would be without it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from utils.runtime.errors import InputError


@dataclass(frozen=True)
class Candidates:
    """What a filter sees of some queries, whose rankings are best first. `bool` arrays are (Q, k).

    `scores` float64 (Q, k). `ranked`: where a passage is ranked that is not the query itself. `eligible`: those of
    them that are neither relevant nor of a relevant one's text. `lowest` float64 (Q,): the score of the query's
    positive that scores lowest.
    """

    scores: np.ndarray
    ranked: np.ndarray
    eligible: np.ndarray
    lowest: np.ndarray


class Filter(Protocol):
    """`str()` gives its name and value, like `skip_ranks 5`. It raises `InputError` for a value that cannot be."""

    def drops(self, found: Candidates) -> np.ndarray:
        """Where a candidate is dropped, bool (Q, k); what is not `eligible` does not matter."""
        ...

    def check_reading(self, normalized: bool) -> None:
        """`InputError` where it means nothing for vectors that are, or are not, of length 1."""
        ...


@dataclass(frozen=True)
class SkipRanks:
    """Drops the `count` best-ranked candidates of each query ("top-k shifted by N" in arXiv:2407.15831)."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"--skip_ranks is {self.count}; a whole number, at least 0, is needed")

    def __str__(self) -> str:
        return f"skip_ranks {self.count}"

    def drops(self, found: Candidates) -> np.ndarray:
        return np.cumsum(found.eligible, axis=1) <= self.count

    def check_reading(self, normalized: bool) -> None:
        pass


@dataclass(frozen=True)
class MaxRelativeScore:
    """Drops scores above p - (1 - `share`) |p|, p the lowest positive's score (TopK-PercPos in arXiv:2407.15831).

    For p > 0 that is share · p. The absolute value keeps the bound below a negative p, too.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"--max_relative_score is {self.share:g}; a share above 0, at most 1, is needed")

    def __str__(self) -> str:
        return f"max_relative_score {self.share:g}"

    def drops(self, found: Candidates) -> np.ndarray:
        bound = found.lowest - (1 - self.share) * np.abs(found.lowest)
        return found.scores > bound[:, None]

    def check_reading(self, normalized: bool) -> None:
        if not normalized:
            raise InputError(
                "--max_relative_score is a share of the positive's score, which means nothing where vectors are not "
                "of length 1 and scores run to hundreds; give --min_margin, or --normalize 1 if the checkpoint is "
                "meant so"
            )


@dataclass(frozen=True)
class MinMargin:
    """Drops scores above p - `deviations` · σ, p the lowest positive's score: TopK-MarginPos of arXiv:2407.15831 in
    units that hold for scores of any size.

    σ is the population's standard deviation (divided by n, not n - 1) of the scores of all passages that are ranked
    for the query, relevant ones too, but for the query itself.
    """

    deviations: float

    def __post_init__(self) -> None:
        if not 0 <= self.deviations < math.inf:
            raise InputError(f"--min_margin is {self.deviations:g}; a number, at least 0, is needed")

    def __str__(self) -> str:
        return f"min_margin {self.deviations:g}"

    def drops(self, found: Candidates) -> np.ndarray:
        counts = np.maximum(found.ranked.sum(axis=1), 1)
        means = _sums(np.where(found.ranked, found.scores, 0)) / counts
        squares = _sums(np.where(found.ranked, found.scores - means[:, None], 0) ** 2)
        bound = found.lowest - self.deviations * np.sqrt(squares / counts)
        return found.scores > bound[:, None]

    def check_reading(self, normalized: bool) -> None:
        pass


def _sums(values: np.ndarray) -> np.ndarray:
    """The sum of each line, added up from the left, so that no padding behind it changes a bit: float64 (Q,)."""
    return np.cumsum(values, axis=1)[:, -1]


FILTERS = {"skip_ranks": SkipRanks, "max_relative_score": MaxRelativeScore, "min_margin": MinMargin}


def make_filters(values: Mapping[str, float | None]) -> list[Filter]:
    """The filters by name for which there is a value, in the order of `FILTERS`."""
    return [kind(values[name]) for name, kind in FILTERS.items() if values.get(name) is not None]


# A candidate that was dropped, of a query that is shown: rows of both, the score, and the number of the filter.
DROPPED = np.dtype([("query", np.int64), ("passage", np.int64), ("score", np.float32), ("filter", np.int64)])


class Sieve:
    """Filters at work: counts what each takes, and keeps what they take from the queries that are `shown`.

    `shown` int64, ascending: rows of queries. `counts` int64 (filters + 2,): the candidates that each filter took,
    all candidates, and the queries that had some and were left with none.
    """

    def __init__(self, filters: Sequence[Filter], shown: np.ndarray) -> None:
        self._filters, self._shown = tuple(filters), shown
        self.counts = np.zeros(len(self._filters) + 2, dtype=np.int64)
        self._dropped = [np.zeros(0, DROPPED)]

    @property
    def dropped(self) -> np.ndarray:
        """What was dropped of the queries shown, as `DROPPED`, in the order of the queries and their ranks."""
        return np.concatenate(self._dropped)

    def leave(
        self, query_rows: np.ndarray, rows: np.ndarray, scores: np.ndarray, eligible: np.ndarray, lowest: np.ndarray
    ) -> np.ndarray:
        """Which of the `eligible` candidates the filters leave, bool (Q, k).

        `query_rows` int64 (Q,); `rows` int64 and `scores` float32 are rankings (Q, k), best first, rows -1 where
        nothing is to be seen; `lowest` float32 (Q,) is the lowest score of each query's positives, nan for a query
        whose candidates are not to be filtered: these are left, and not counted.
        """
        sifted = ~np.isnan(lowest)
        if not self._filters or not sifted.any():
            return eligible
        eligible_here = eligible & sifted[:, None]
        found = Candidates(scores.astype(np.float64), rows >= 0, eligible_here, lowest.astype(np.float64))
        left = eligible_here
        taken = np.full(rows.shape, -1, dtype=np.int64)
        for number, each in enumerate(self._filters):
            takes = left & each.drops(found)
            taken[takes] = number
            left = left & ~takes
        numbers, counts = np.unique(taken[taken >= 0], return_counts=True)
        self.counts[numbers] += counts
        self.counts[-2] += eligible_here.sum()
        self.counts[-1] += (eligible_here.any(axis=1) & ~left.any(axis=1)).sum()
        line, place = np.nonzero((taken >= 0) & np.isin(query_rows, self._shown)[:, None])
        if len(line):
            kept = np.zeros(len(line), DROPPED)
            kept["query"], kept["passage"] = query_rows[line], rows[line, place]
            kept["score"], kept["filter"] = scores[line, place], taken[line, place]
            self._dropped.append(kept)
        return left | (eligible & ~sifted[:, None])
