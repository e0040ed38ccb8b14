"""Query clusters."""

import numpy as np
import pytest

from utils.clustering import cluster_queries, evaluate_clusters, nearest_centroid
from utils.errors import InputError


def blobs(per_blob=40, seed=0):
    generator = np.random.default_rng(seed)
    centers = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 9, 9]], np.float32)
    points = np.concatenate([center + generator.normal(size=(per_blob, 3)) for center in centers])
    return points.astype(np.float32), np.repeat(np.arange(4), per_blob)


def test_separate_groups_become_the_clusters():
    points, group = blobs()
    clusters = cluster_queries(points, 4, seed=1)
    assert clusters.sizes.tolist() == [40] * 4
    assert len({tuple(pair) for pair in np.stack([clusters.assignment, group], axis=1)}) == 4


def test_every_query_goes_to_its_nearest_centroid():
    points, _ = blobs(seed=3)
    clusters = cluster_queries(points, 9, seed=1)
    distances = np.linalg.norm(points[:, None] - clusters.centroids, axis=2)
    assert np.array_equal(clusters.assignment, distances.argmin(1))
    assert np.array_equal(clusters.sizes, np.bincount(clusters.assignment, minlength=9))
    assert np.array_equal(nearest_centroid(clusters.centroids, clusters.centroids), np.arange(9))


def test_the_seed_fixes_the_clusters():
    points, _ = blobs()
    one, same, other = (cluster_queries(points, 7, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_clusters_are_kept_on_disk(tmp_path):
    points, _ = blobs()
    clusters = cluster_queries(points, 4, seed=1)
    clusters.save(tmp_path / "clusters_0")
    for name, array in vars(clusters).items():
        assert np.array_equal(np.load(tmp_path / "clusters_0" / f"{name}.npy"), array)


def test_more_clusters_than_queries_is_an_error():
    with pytest.raises(InputError, match="161 clusters of 160 training queries"):
        cluster_queries(blobs()[0], 161, seed=1)
    with pytest.raises(InputError, match="at least 1"):
        cluster_queries(blobs()[0], 0, seed=1)
    assert cluster_queries(blobs()[0], 160, seed=1).sizes.sum() == 160


def test_dev_queries_count_for_the_cluster_of_their_nearest_centroid():
    points, _ = blobs()
    clusters = cluster_queries(points, 4, seed=1)
    label = clusters.assignment[[0, 40, 80, 120]]  # of each group
    dev = points[[0, 1, 40, 80]]
    found = evaluate_clusters(clusters, dev, np.array([1.0, 0.5, 0.25, np.nan]))
    mrr = [found["cluster_mrr"][cluster] for cluster in label]
    assert mrr == [0.75, 0.25, None, None]
    assert [found["cluster_dev_queries"][cluster] for cluster in label] == [2, 1, 1, 0]
    assert (found["clusters"], found["cluster_sizes"]) == (4, [40] * 4)
