"""Exact search with near-ties, and k-means, on a GPU and on the CPU."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda.simulated.steps import CPU
from tests.tiny_models import random_store, write_embeddings
from utils.batching import Sequences
from utils.mining import search as searching
from utils.mining.search import HalfBlock, score_pairs, search
from utils.stores.embedding_store import EmbeddingMatrix

pytestmark = pytest.mark.gpu

PASSAGES, DIMENSIONS = 3000, 40


@dataclass
class Collection:
    queries: np.ndarray
    passages: EmbeddingMatrix

    def found(self, k: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        return search(self.queries, self.passages, 0, len(self.passages), k, device)

    def products(self) -> np.ndarray:
        """All scores in float64."""
        return self.queries.astype(np.float64) @ self.passages.rows(0, len(self.passages)).astype(np.float64).T


def near_ties(folder: Path) -> Collection:
    """Groups of a hundred passages that half precision cannot tell apart, and float32 can."""
    generator = np.random.default_rng(0)
    centres = 2 + generator.standard_normal((PASSAGES // 100, DIMENSIONS))
    passages = np.repeat(centres, 100, axis=0) + 1e-4 * generator.standard_normal((PASSAGES, DIMENSIONS))
    queries = generator.standard_normal((70, DIMENSIONS))
    return Collection(
        queries.astype(np.float32), write_embeddings(folder, "passages", "t", passages.astype(np.float32))
    )


def ties(folder: Path) -> Collection:
    """Small whole numbers, whose scores are exact in whatever order they are summed, and of which many are equal."""
    generator = np.random.default_rng(0)
    passages = generator.integers(-3, 9, size=(PASSAGES, DIMENSIONS)).astype(np.float32)
    queries = generator.integers(-4, 5, size=(70, DIMENSIONS)).astype(np.float32)
    return Collection(queries, write_embeddings(folder, "passages", "t", passages))


@pytest.fixture(params=[False, True], ids=["in one tile", "in many tiles and blocks"])
def tiles(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setattr(searching, "TILE_COLUMNS", 300)
        monkeypatch.setattr(searching, "TILE_SCORES", 9000)
        monkeypatch.setattr(searching, "BLOCK_BYTES", 4 * DIMENSIONS * 999)
        monkeypatch.setattr(searching, "LINES", 32)


@pytest.mark.parametrize("k", [1, 50])
def test_near_ties_are_ranked_as_by_scoring_every_pair(k, device, tiles, tmp_path):
    collection = near_ties(tmp_path / "vectors")
    scores, rows = collection.found(k, device)
    block = HalfBlock(collection.passages.rows(0, PASSAGES), device)
    queries = torch.from_numpy(collection.queries).to(device)
    every = block.score(queries, torch.arange(PASSAGES, device=device).expand(len(queries), -1)).cpu().numpy()
    expected = np.argsort(-every, axis=1, kind="stable")[:, :k]
    assert np.array_equal(rows, expected)
    assert np.array_equal(scores, np.take_along_axis(every, expected, axis=1))
    exact = np.take_along_axis(collection.products(), rows, axis=1)
    np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("k", [50, PASSAGES])
def test_equal_scores_are_ranked_by_row(k, device, tiles, tmp_path):
    collection = ties(tmp_path / "vectors")
    scores, rows = collection.found(k, device)
    products = collection.products()
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    assert np.array_equal(rows, expected)
    assert np.array_equal(scores, np.take_along_axis(products, expected, axis=1))


def test_a_pair_scores_as_it_does_in_search(device, tmp_path):
    collection = near_ties(tmp_path / "vectors")
    queries = write_embeddings(tmp_path / "queries", "queries", "t", collection.queries)
    scores, rows = collection.found(5, device)
    sequences = Sequences(random_store(tmp_path / "tokens", PASSAGES, 4))
    pairs = np.repeat(np.arange(len(rows)), 5), rows.flatten()
    assert np.array_equal(score_pairs(queries, collection.passages, sequences, *pairs, device), scores.flatten())


def test_clusters_are_those_of_the_cpu(device, tmp_path):
    for name in ("faiss", "ir_measures"):
        pytest.importorskip(name)
    from utils.mining import clustering

    embeddings = near_ties(tmp_path / "vectors").passages
    vectors = embeddings.rows(0, PASSAGES)
    (got, dev), (expected, _) = (clustering.cluster(embeddings, embeddings, 7, 1, one) for one in (device, CPU))

    def inertia(clusters) -> float:
        return float(((vectors - clusters.centroids[clusters.assignment]) ** 2).sum(dtype=np.float64))

    assert inertia(got) < 1.01 * inertia(expected)
    assert np.array_equal(got.assignment, clustering.nearest_centroid(embeddings, got.centroids, CPU))
    assert np.array_equal(dev, got.assignment)
    assert np.array_equal(got.sizes, np.bincount(got.assignment, minlength=7))
