"""Query clusters."""

import faiss
import numpy as np
import pytest
import torch

from utils.mining import clustering
from utils.mining.clustering import (
    POINTS_A_CENTROID,
    cluster_queries,
    evaluate_clusters,
    nearest_centroid,
    read_assignment,
)
from utils.runtime.errors import InputError

CPU = torch.device("cpu")


class Matrix:
    """Rows as an `EmbeddingMatrix` gives them out, a block at a time; `most` is the largest block asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape, self.most = rows, rows.shape, 0

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.most = max(self.most, stop - start)
        return self._rows[start:stop]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 33)


def blobs(per_blob=40, seed=0):
    generator = np.random.default_rng(seed)
    centers = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 9, 9]], np.float32)
    points = np.concatenate([center + generator.normal(size=(per_blob, 3)) for center in centers])
    return points.astype(np.float32), np.repeat(np.arange(4), per_blob)


def test_separate_groups_become_the_clusters():
    points, group = blobs()
    clusters = cluster_queries(Matrix(points), 4, 1, CPU)
    assert clusters.sizes.tolist() == [40] * 4
    assert len({tuple(pair) for pair in np.stack([clusters.assignment, group], axis=1)}) == 4


def test_every_query_goes_to_its_nearest_centroid():
    points, _ = blobs(seed=3)
    clusters = cluster_queries(Matrix(points), 9, 1, CPU)
    distances = np.linalg.norm(points[:, None] - clusters.centroids, axis=2)
    assert np.array_equal(clusters.assignment, distances.argmin(1))
    assert np.array_equal(clusters.sizes, np.bincount(clusters.assignment, minlength=9))
    assert np.array_equal(nearest_centroid(Matrix(clusters.centroids), clusters.centroids, CPU), np.arange(9))


def test_the_seed_fixes_the_clusters():
    points, _ = blobs()
    one, same, other = (cluster_queries(Matrix(points), 7, seed, CPU) for seed in (5, 5, 6))
    assert np.array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_blocks_and_threads_make_no_difference(monkeypatch):
    points, _ = blobs(per_blob=400)
    one = cluster_queries(Matrix(points), 5, 1, CPU)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 10**6)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads % 2 + 1)
    try:
        other = cluster_queries(Matrix(points), 5, 1, CPU)
    finally:
        faiss.omp_set_num_threads(threads)
    assert all(np.array_equal(array, getattr(other, name)) for name, array in vars(one).items())


def test_all_queries_are_trained_on_while_they_are_few():
    points, _ = blobs()
    kmeans = faiss.Kmeans(3, 5, niter=25, nredo=5, seed=1, min_points_per_centroid=1)
    kmeans.train(points)
    assert np.array_equal(cluster_queries(Matrix(points), 5, 1, CPU).centroids, kmeans.centroids)


def test_of_many_queries_a_sample_is_trained_on_that_has_each_with_the_same_chance():
    points = np.arange(50 * POINTS_A_CENTROID, dtype=np.float32)[:, None]
    samples = [clustering._sample(Matrix(points), POINTS_A_CENTROID, seed)[:, 0] for seed in range(40)]
    assert all((np.diff(sample) > 0).all() for sample in samples)
    assert not np.array_equal(samples[0], samples[1])
    drawn = np.concatenate(samples).astype(int)
    for parts, part_of in ((10, drawn * 10 // len(points)), (2, drawn % 2)):
        counts, expected = np.bincount(part_of, minlength=parts), len(drawn) / parts
        # A count's standard deviation is at most the root; 5 of them are a chance of 1 in a million.
        assert (abs(counts - expected) < 5 * expected**0.5).all(), counts


def test_no_more_than_a_block_of_half_precision_queries_is_ever_asked_for():
    points, group = blobs(per_blob=40 * POINTS_A_CENTROID)
    matrix = Matrix(points.astype(np.float16))
    clusters = cluster_queries(matrix, 4, 1, CPU)
    assert matrix.most == 33
    assert (np.diff(clusters.assignment.reshape(4, -1)) == 0).all()
    assert (clusters.centroids.dtype, clusters.assignment.dtype) == (np.float32, np.int64)
    assert len(set(clusters.assignment[:: len(group) // 4])) == 4


def test_clusters_are_kept_on_disk(tmp_path):
    points, _ = blobs()
    clusters = cluster_queries(Matrix(points), 4, 1, CPU)
    folder, dev_assignment = tmp_path / "clusters_0", np.array([3, 0, 1])
    clusters.save(folder, dev_assignment)
    for name, array in vars(clusters).items():
        assert np.array_equal(np.load(folder / f"{name}.npy"), array)
    found, count = read_assignment(folder, "dev_assignment", 3)
    assert (found.tolist(), count) == ([3, 0, 1], 4)


@pytest.mark.parametrize("content", [None, b"x", [0, 1], [0, 1, 4], [0, -1, 2], [0.0, 1.0, 2.0]])
def test_damaged_clusters_of_dev_queries_are_refused(tmp_path, content):
    folder = tmp_path / "clusters_0"
    cluster_queries(Matrix(blobs()[0]), 4, 1, CPU).save(folder, np.array([3, 0, 1]))
    path = folder / "dev_assignment.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.array(content))
    with pytest.raises(InputError, match="mine the episode again"):
        read_assignment(folder, "dev_assignment", 3)


def test_more_clusters_than_queries_is_an_error():
    with pytest.raises(InputError, match="161 clusters of 160 training queries"):
        cluster_queries(Matrix(blobs()[0]), 161, 1, CPU)
    with pytest.raises(InputError, match="at least 1"):
        cluster_queries(Matrix(blobs()[0]), 0, 1, CPU)
    assert cluster_queries(Matrix(blobs()[0]), 160, 1, CPU).sizes.sum() == 160


def test_dev_queries_count_for_the_cluster_of_their_nearest_centroid():
    points, _ = blobs()
    clusters = cluster_queries(Matrix(points), 4, 1, CPU)
    label = clusters.assignment[[0, 40, 80, 120]]  # of each group
    dev = points[[0, 1, 40, 80]]
    nearest = nearest_centroid(Matrix(dev), clusters.centroids, CPU)
    found = evaluate_clusters(clusters, nearest, np.array([1.0, 0.5, 0.25, np.nan]))
    mrr = [found["cluster_mrr"][cluster] for cluster in label]
    assert mrr == [0.75, 0.25, None, None]
    assert [found["cluster_dev_queries"][cluster] for cluster in label] == [2, 1, 1, 0]
    assert (found["clusters"], found["cluster_sizes"]) == (4, [40] * 4)
