"""Encoding, exact search and clusters on the simulated device give what they give on the CPU."""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoders import Encoder
from model.families import FAMILIES
from tests.cuda.device import Event, simulated_cuda
from tests.cuda.simulated.steps import CPU, READINGS
from tests.tiny_models import random_store, tiny_config, tiny_model, write_embeddings
from utils.batching import Sequences
from utils.mining import search as searching
from utils.mining.clustering import cluster
from utils.mining.encoding import encode
from utils.mining.search import score_pairs, search
from utils.runtime.precision import Precision
from utils.stores.embedding_store import EmbeddingMatrix

ALL = os.environ.get("ANCE_CUDA_VARIANTS") == "all"
CUDA = torch.device("cuda", 0)
TYPES = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
TEXTS = 60


def vectors_of(family: str, reading: str, dtype: torch.dtype, folder: Path, device: torch.device) -> np.ndarray:
    sequences = Sequences(random_store(folder, TEXTS, seed=5))
    encoder = Encoder(tiny_model(tiny_config(family)), READINGS[reading])
    for parameter in encoder.head.parameters():
        torch.nn.init.normal_(parameter)
    vectors = np.full((TEXTS, encoder.embedding_dim), np.nan, np.float32)
    batches = iter(np.array_split(np.random.default_rng(0).permutation(TEXTS), 4))

    def write(numbers: np.ndarray, of_batch: np.ndarray) -> None:
        vectors[numbers] = of_batch

    encode(encoder.to(device).eval(), sequences, batches, device, Precision(device.type, dtype), write)
    return vectors


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("family", "reading"),
    [*product(FAMILIES, READINGS)] if ALL else [*zip(FAMILIES, [*READINGS, *READINGS], strict=False)],
)
def test_vectors_are_those_of_the_cpu(family, reading, dtype, tmp_path):
    expected = vectors_of(family, reading, torch.float32, tmp_path / "cpu", CPU)
    with simulated_cuda() as device:
        got = vectors_of(family, reading, dtype, tmp_path / "cuda", CUDA)
        waits = [wait for wait in device.synchronisations if "tests/cuda/" not in wait]  # moves the encoder
    assert np.linalg.norm(got - expected) < TYPES[dtype] * np.linalg.norm(expected)
    assert len(waits) <= 4, "for the vectors of each batch"
    assert all(wait.startswith("event.synchronize") for wait in waits), waits


def test_vectors_that_are_read_before_they_have_arrived_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(Event, "synchronize", lambda event: None)
    with simulated_cuda():
        assert np.isnan(vectors_of("bert", "mean", torch.float32, tmp_path, CUDA)).all()


@dataclass
class Collection:
    """Vectors of small whole numbers, so that scores are exact in whatever order they are summed, and many tie."""

    queries: np.ndarray
    passages: EmbeddingMatrix


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    generator = np.random.default_rng(0)
    passages = generator.integers(-3, 9, size=(3000, 20)).astype(np.float32)
    passages[100:180] = passages[100]
    queries = generator.integers(-4, 5, size=(70, 20)).astype(np.float32)
    queries[0] = passages[100]
    return Collection(queries, write_embeddings(tmp_path_factory.mktemp("vectors"), "passages", "t", passages))


@pytest.fixture(params=[False, True], ids=["in one tile", "in many tiles and blocks"])
def tiles(request, monkeypatch) -> None:
    if request.param:
        monkeypatch.setattr(searching, "TILE_COLUMNS", 300)
        monkeypatch.setattr(searching, "TILE_SCORES", 9000)
        monkeypatch.setattr(searching, "BLOCK_BYTES", 4 * 20 * 999)
        monkeypatch.setattr(searching, "LINES", 32)


@pytest.mark.parametrize("k", [1, 50, 3000])
def test_search_finds_what_sorting_all_scores_finds_ties_included(collection, tiles, k):
    with simulated_cuda():
        scores, rows = search(collection.queries, collection.passages, 0, 3000, k, CUDA)
    products = collection.queries @ collection.passages.rows(0, 3000).T
    assert (np.diff(np.sort(products, axis=1)) == 0).any()
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    assert np.array_equal(rows, expected)
    assert np.array_equal(scores, np.take_along_axis(products, expected, axis=1))
    assert np.array_equal(rows, search(collection.queries, collection.passages, 0, 3000, k, CPU)[1])


def test_pairs_score_as_on_the_cpu(collection, tmp_path):
    queries = write_embeddings(tmp_path / "v", "queries", "t", collection.queries)
    sequences = Sequences(random_store(tmp_path / "s", 3000, 4))
    pairs = np.arange(70), np.arange(70) * 40
    of = queries, collection.passages, sequences, *pairs
    expected = (collection.queries * collection.passages.take(pairs[1])).sum(1)
    with simulated_cuda():
        assert np.array_equal(score_pairs(*of, CUDA), expected)
    assert np.array_equal(score_pairs(*of, CPU), expected)


def test_clusters_are_those_of_the_cpu(collection):
    expected, expected_dev = cluster(collection.passages, collection.passages, 7, 1, CPU)
    with simulated_cuda():
        got, dev = cluster(collection.passages, collection.passages, 7, 1, CUDA)
    assert np.array_equal(got.assignment, expected.assignment)
    assert np.array_equal(dev, expected_dev)
