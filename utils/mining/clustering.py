"""Query clusters: k-means on the embeddings of the training queries (Euclidean, faiss).

FOLDER/centroids.npy         float32 (K, dimensions)
FOLDER/sizes.npy             int64 (K,), training queries a cluster
FOLDER/assignment.npy        int64 (queries,), each training query's cluster
FOLDER/dev_assignment.npy    int64 (dev queries,), the cluster of each dev query's nearest centroid

Centroids are found on a sample, whose size depends on their number alone; then the embeddings stream by in blocks
and every query goes to its nearest centroid. So memory grows with the queries by 8 bytes each, their assignment.
One process does all of it, on its GPU where the installed faiss has GPUs: the clusters are the same for any number of
processes. A GPU's may differ from a CPU's by rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from utils.mining.metrics import mean_by_cluster
from utils.mining.named_groups import NAMES, NamedGroups
from utils.runtime.errors import InputError
from utils.stores.embedding_store import EmbeddingMatrix
from utils.stores.files import atomic_folder, load_array

ITERATIONS = 25
RESTARTS = 5
POINTS_A_CENTROID = 256  # of a sample: as many as faiss would take of all the points by itself
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Clusters:
    """`centroids` float32 (K, dimensions), `sizes` int64 (K,), `assignment` int64 (training queries,)."""

    centroids: np.ndarray
    sizes: np.ndarray
    assignment: np.ndarray

    def save(self, folder: str | Path, dev_assignment: np.ndarray) -> None:
        """Writes the three arrays and the dev queries' clusters, atomically."""
        with atomic_folder(folder) as partial:
            for name, array in {**vars(self), "dev_assignment": dev_assignment}.items():
                np.save(partial / f"{name}.npy", array)


def cluster_queries(embeddings: EmbeddingMatrix, n_clusters: int, seed: int, device: torch.device) -> Clusters:
    """The best (least inertia) of several seeded k-means runs; every query then goes to its nearest centroid.

    `embeddings` (queries, dimensions). faiss trains on at most `POINTS_A_CENTROID` queries a cluster, a seeded sample
    that is drawn here, so that it never holds the others. Raises `InputError` for more clusters than queries.
    """
    queries, dimensions = embeddings.shape
    if n_clusters > queries:
        raise InputError(f"{n_clusters} clusters of {queries} training queries; lower --cluster_centroids")
    if n_clusters < 1:
        raise InputError(f"--cluster_centroids is {n_clusters}; at least 1 is needed")
    kmeans = faiss.Kmeans(
        dimensions,
        n_clusters,
        niter=ITERATIONS,
        nredo=RESTARTS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_A_CENTROID,
    )
    kmeans.index = _euclidean_index(dimensions, device)
    kmeans.train(_sample(embeddings, min(queries, POINTS_A_CENTROID * n_clusters), seed))
    assignment = nearest_centroid(embeddings, kmeans.centroids, device)
    return Clusters(kmeans.centroids, np.bincount(assignment, minlength=n_clusters), assignment)


def cluster(
    embeddings: EmbeddingMatrix, dev_embeddings: EmbeddingMatrix, n_clusters: int, seed: int, device: torch.device
) -> tuple[Clusters, np.ndarray]:
    """The clusters of the training queries, and the nearest of them to each dev query, int64 (dev queries,)."""
    clusters = cluster_queries(embeddings, n_clusters, seed, device)
    return clusters, nearest_centroid(dev_embeddings, clusters.centroids, device)


def nearest_centroid(embeddings: EmbeddingMatrix, centroids: np.ndarray, device: torch.device) -> np.ndarray:
    """The centroid of least Euclidean distance to each row of `embeddings`: int64 (rows,)."""
    index = _euclidean_index(centroids.shape[1], device)
    index.add(centroids)
    nearest = np.empty(len(embeddings), dtype=np.int64)
    for start, stop in _blocks(embeddings):
        rows = np.ascontiguousarray(embeddings.rows(start, stop), dtype=np.float32)
        nearest[start:stop] = index.search(rows, 1)[1][:, 0]
    return nearest


def _sample(embeddings: EmbeddingMatrix, size: int, seed: int) -> np.ndarray:
    """`size` of the rows, a seeded choice without replacement, in their order: float32 (size, dimensions)."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(embeddings), size, replace=False, shuffle=False))
    sample = np.empty((size, embeddings.shape[1]), dtype=np.float32)
    for start, stop in _blocks(embeddings):
        first, last = np.searchsorted(chosen, (start, stop))
        sample[first:last] = embeddings.rows(start, stop)[chosen[first:last] - start]
    return sample


def _blocks(embeddings: EmbeddingMatrix) -> Iterator[tuple[int, int]]:
    """The rows start … stop - 1 of each block."""
    for start in range(0, len(embeddings), BLOCK_ROWS):
        yield start, min(start + BLOCK_ROWS, len(embeddings))


def _euclidean_index(dimensions: int, device: torch.device) -> faiss.Index:
    """An exact index, on the device where that is a GPU and the installed faiss has GPUs, else on the CPU."""
    index = faiss.IndexFlatL2(dimensions)
    if device.type == "cuda" and faiss.get_num_gpus():
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index, index)
    return index


def evaluate_clusters(clusters: Clusters | NamedGroups, dev_assignment: np.ndarray, dev_mrr: np.ndarray) -> dict:
    """What a mined episode says of its clusters, as plain lists: their number and sizes, and how dev queries fare.

    `dev_assignment` int64 (D,) is the cluster of each dev query, -1 for one in no named group, `dev_mrr` float (D,),
    NaN where not judged. A cluster without a judged dev query has None as its mean.
    """
    count = len(clusters.sizes)
    named = {"cluster_names": clusters.names} if isinstance(clusters, NamedGroups) else {}
    return named | {
        "clusters": count,
        "cluster_sizes": clusters.sizes.tolist(),
        "cluster_dev_queries": np.bincount(dev_assignment[dev_assignment >= 0], minlength=count).tolist(),
        "cluster_mrr": [
            None if np.isnan(mrr) else mrr for mrr in mean_by_cluster(dev_mrr, dev_assignment, count).tolist()
        ],
    }


def read_assignment(folder: str | Path, name: str, queries: int) -> tuple[np.ndarray, int]:
    """The cluster of each query, int64 (queries,), and the number of clusters, as `Clusters.save` wrote them.

    `name` is assignment (training queries) or dev_assignment, where a query that is in no named group has -1. Raises
    `InputError` where they are missing, damaged or of other queries.
    """
    arrays = []
    for of in (name, "sizes"):
        path = Path(folder, f"{of}.npy")
        array = load_array(path, "mine the episode again with --cluster_query")
        if array.ndim != 1 or array.dtype != np.int64:
            raise InputError(f"holds {array.dtype} {array.shape}, not one int64 a row; mine the episode again", path)
        arrays.append(array)
    assignment, count = arrays[0], len(arrays[1])
    least = -1 if name == "dev_assignment" and Path(folder, NAMES).exists() else 0
    if len(assignment) != queries or (queries and not least <= assignment.min() <= assignment.max() < count):
        raise InputError(
            f"holds the clusters of {len(assignment)} queries, and there are {queries}, or clusters beyond {count}; "
            "mine the episode again",
            folder,
        )
    return assignment, count
