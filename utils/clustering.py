"""Query clusters: k-means on the embeddings of the training queries (Euclidean, faiss).

FOLDER/centroids.npy     float32 (K, dimensions)
FOLDER/sizes.npy         int64 (K,), training queries a cluster
FOLDER/assignment.npy    int64 (queries,), each training query's cluster
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from utils.errors import InputError
from utils.files import atomic_folder
from utils.metrics import mean_by_cluster

ITERATIONS = 25
RESTARTS = 5


@dataclass(frozen=True)
class Clusters:
    """`centroids` float32 (K, dimensions), `sizes` int64 (K,), `assignment` int64 (training queries,)."""

    centroids: np.ndarray
    sizes: np.ndarray
    assignment: np.ndarray

    def save(self, folder: str | Path) -> None:
        """Writes the three arrays, atomically."""
        with atomic_folder(folder) as partial:
            for name, array in vars(self).items():
                np.save(partial / f"{name}.npy", array)


def cluster_queries(embeddings: np.ndarray, n_clusters: int, seed: int) -> Clusters:
    """The best (least inertia) of several seeded k-means runs; every query then goes to its nearest centroid.

    `embeddings` float32 (queries, dimensions). Raises `InputError` for more clusters than queries. faiss trains on
    at most 256 points a centroid, a seeded sample.
    """
    queries, dimensions = embeddings.shape
    if n_clusters > queries:
        raise InputError(f"{n_clusters} clusters of {queries} training queries; lower --cluster_centroids")
    if n_clusters < 1:
        raise InputError(f"--cluster_centroids is {n_clusters}; at least 1 is needed")
    kmeans = faiss.Kmeans(
        dimensions, n_clusters, niter=ITERATIONS, nredo=RESTARTS, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(np.ascontiguousarray(embeddings))
    assignment = nearest_centroid(embeddings, kmeans.centroids)
    return Clusters(kmeans.centroids, np.bincount(assignment, minlength=n_clusters), assignment)


def nearest_centroid(embeddings: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The centroid of least Euclidean distance to each row of `embeddings`: int64 (rows,)."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return index.search(np.ascontiguousarray(embeddings), 1)[1][:, 0]


def evaluate_clusters(clusters: Clusters, dev_embeddings: np.ndarray, dev_mrr: np.ndarray) -> dict:
    """What a mined episode says of its clusters, as plain lists: their number and sizes, and how dev queries fare.

    A dev query counts for the cluster of its nearest centroid. `dev_embeddings` float32 (D, dimensions); `dev_mrr`
    float (D,), NaN where not judged. A cluster without a judged dev query has None as its mean.
    """
    count = len(clusters.sizes)
    nearest = nearest_centroid(dev_embeddings, clusters.centroids)
    return {
        "clusters": count,
        "cluster_sizes": clusters.sizes.tolist(),
        "cluster_dev_queries": np.bincount(nearest, minlength=count).tolist(),
        "cluster_mrr": [None if np.isnan(mrr) else mrr for mrr in mean_by_cluster(dev_mrr, nearest, count).tolist()],
    }
