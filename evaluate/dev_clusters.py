"""The clusters of the dev queries, and how each of them fares in a run.

A cluster with few dev queries is good or bad by chance: the worst one is looked for among those that hold at least
`LEAST_QUERIES` judged ones.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.metrics_file import PerQuery
from utils.clustering import read_dev_assignment
from utils.errors import InputError
from utils.metrics import mean_by_cluster
from utils.token_store import TokenStore

LEAST_QUERIES = 10


@dataclass(frozen=True)
class DevClusters:
    """`ids` of the dev queries, in the order of their rows; `assignment` int64 (dev queries,); `count` clusters."""

    ids: list[str]
    assignment: np.ndarray
    count: int

    @classmethod
    def read(cls, clusters_dir: str | Path, dev_query_dir: str | Path) -> "DevClusters":
        """Reads clusters_N of a mined episode and the ids of the dev queries' token store."""
        ids = TokenStore(dev_query_dir).ids
        return cls(ids, *read_dev_assignment(clusters_dir, len(ids)))

    def values(self, per_query: PerQuery, measure: str) -> np.ndarray:
        """One measure of each dev query, float64 (dev queries,); nan where it was not judged.

        Raises `InputError` for the values of other queries than these.
        """
        strangers = per_query.keys() - set(self.ids)
        if strangers:
            raise InputError(f"the dev queries of the token store lack {min(strangers)!r}, which was evaluated")
        if measure not in next(iter(per_query.values())):
            raise InputError(f"the values a query hold no {measure}; evaluate again")
        return np.array([per_query[query][measure] if query in per_query else np.nan for query in self.ids])

    def means(self, values: np.ndarray) -> list[float | None]:
        """The mean of each cluster; None where it has no judged query."""
        means = mean_by_cluster(values, self.assignment, self.count)
        return [None if np.isnan(mean) else float(mean) for mean in means]

    def worst(self, values: np.ndarray) -> float | None:
        """The lowest mean of a cluster with `LEAST_QUERIES` judged queries; None where there is none."""
        judged = np.bincount(self.assignment[~np.isnan(values)], minlength=self.count)
        means = mean_by_cluster(values, self.assignment, self.count)[judged >= LEAST_QUERIES]
        return float(means.min()) if len(means) else None
