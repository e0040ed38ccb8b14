"""Dev queries by cluster."""

import numpy as np
import pytest

from evaluate.dev_clusters import DevClusters
from utils.runtime.errors import InputError

IDS = [f"q{i}" for i in range(36)]
CLUSTERS = DevClusters(IDS, np.repeat([0, 1, 2], 12), 4)


def test_the_worst_cluster_is_the_lowest_mean_of_those_with_enough_judged_queries():
    per_query = {query: {"mrr@10": value} for query, value in zip(IDS, np.linspace(1, 0, 36).tolist(), strict=True)}
    values = CLUSTERS.values(per_query, "mrr@10")
    means = CLUSTERS.means(values)
    assert means == [*(pytest.approx(values[i * 12 : i * 12 + 12].mean()) for i in range(3)), None]
    assert CLUSTERS.worst(values) == means[2]
    for query in IDS[-3:]:
        del per_query[query]  # 9 judged ones are too few
    values = CLUSTERS.values(per_query, "mrr@10")
    assert np.isnan(values[-3:]).all()
    assert CLUSTERS.worst(values) == means[1]
    assert CLUSTERS.means(values)[2] == pytest.approx(values[24:33].mean())


def test_a_query_in_no_named_group_counts_in_none():
    groups = DevClusters(IDS, np.where(np.arange(36) < 12, -1, CLUSTERS.assignment), 4, ["a", "b", "c", "d"])
    values = np.linspace(0, 1, 36)
    assert groups.means(values) == [None, *CLUSTERS.means(values)[1:]]
    assert groups.judged(values).tolist() == [0, 12, 12, 0]
    assert groups.worst(values) == pytest.approx(values[12:24].mean())
    assert groups.only(IDS[10:14]).names == groups.names
    assert (groups.kind, CLUSTERS.kind) == ("group", "cluster")


def test_values_of_other_queries_or_without_the_measure_are_refused():
    with pytest.raises(InputError, match="lack 'q99'"):
        CLUSTERS.values({"q1": {"mrr@10": 1.0}, "q99": {"mrr@10": 1.0}}, "mrr@10")
    with pytest.raises(InputError, match="lack 'q99'"):
        CLUSTERS.only(["q99"])
    with pytest.raises(InputError, match="hold no ndcg@3"):
        CLUSTERS.values({"q1": {"mrr@10": 1.0}}, "ndcg@3")


def test_some_of_the_queries_keep_their_clusters():
    chosen = CLUSTERS.only({"q30": 1, "q2": 1, "q13": 1})
    assert (chosen.ids, chosen.assignment.tolist(), chosen.count) == (["q2", "q13", "q30"], [0, 1, 2], 4)


def test_where_no_cluster_has_enough_queries_none_is_the_worst():
    assert DevClusters(["a"], np.zeros(1, np.int64), 1).worst(np.array([0.5])) is None
