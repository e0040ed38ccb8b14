"""The clusters of the dev queries, or their groups by name, and how each of them fares in a run.

A cluster with few dev queries is good or bad by chance: the worst one is looked for among those that hold at least
`LEAST_QUERIES` judged ones.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluate.metrics_file import PerQuery
from utils.mining.clustering import read_assignment
from utils.mining.metrics import mean_by_cluster
from utils.mining.named_groups import read_names
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore

LEAST_QUERIES = 10


@dataclass(frozen=True)
class DevClusters:
    """`ids` of the dev queries, in the order of their rows; `assignment` int64 (dev queries,); `count` clusters.

    `names` are those of groups by name, None of clusters; a query that is in no such group is assigned to -1.
    """

    ids: list[str]
    assignment: np.ndarray
    count: int
    names: list[str] | None = None

    @property
    def kind(self) -> str:
        """What they are called."""
        return "group" if self.names else "cluster"

    @classmethod
    def read(cls, clusters_dir: str | Path, dev_query_dir: str | Path) -> "DevClusters":
        """Reads clusters_N of a mined episode and the ids of the dev queries' token store."""
        ids = TokenStore(dev_query_dir).ids
        assignment, count = read_assignment(clusters_dir, "dev_assignment", len(ids))
        return cls(ids, assignment, count, read_names(clusters_dir, count))

    def only(self, judged: Collection[str]) -> "DevClusters":
        """Those of these queries; `InputError` where one is not among them."""
        self._check_has(judged)
        rows = [row for row, query in enumerate(self.ids) if query in judged]
        return replace(self, ids=[self.ids[row] for row in rows], assignment=self.assignment[rows])

    def values(self, per_query: PerQuery, measure: str) -> np.ndarray:
        """One measure of each dev query, float64 (dev queries,); nan where it was not judged.

        Raises `InputError` for the values of other queries than these.
        """
        self._check_has(per_query)
        if measure not in next(iter(per_query.values())):
            raise InputError(f"the values a query hold no {measure}; evaluate again")
        return np.array([per_query[query][measure] if query in per_query else np.nan for query in self.ids])

    def _check_has(self, judged: Collection[str]) -> None:
        if strangers := set(judged) - set(self.ids):
            raise InputError(f"the dev queries of the token store lack {min(strangers)!r}, which was evaluated")

    def means(self, values: np.ndarray) -> list[float | None]:
        """The mean of each cluster; None where it has no judged query."""
        means = mean_by_cluster(values, self.assignment, self.count)
        return [None if np.isnan(mean) else float(mean) for mean in means]

    def judged(self, values: np.ndarray) -> np.ndarray:
        """The judged queries of each cluster, int64 (clusters,)."""
        return np.bincount(self.assignment[~np.isnan(values) & (self.assignment >= 0)], minlength=self.count)

    def large(self, values: np.ndarray) -> np.ndarray:
        """Which clusters hold `LEAST_QUERIES` judged queries, bool (clusters,)."""
        return self.judged(values) >= LEAST_QUERIES

    def worst(self, values: np.ndarray, among: np.ndarray | None = None) -> float | None:
        """The lowest mean of a cluster that is large, or of those that `among` marks; None where none has a query."""
        means = mean_by_cluster(values, self.assignment, self.count)[self.large(values) if among is None else among]
        return None if np.isnan(means).all() else float(np.nanmin(means))
