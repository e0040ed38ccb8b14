"""Exact search against a plain sort: ties, near-ties that products cannot tell apart, shares and windows included."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.processes import run_processes
from utils.mining import search
from utils.mining.search import ApproximateIndex, HalfBlock, best_chunks, score_pairs, search_rows, search_together
from utils.runtime.errors import InputError

CPU = torch.device("cpu")


class Matrix:
    """An embedding matrix in memory, in shards of some size."""

    def __init__(self, values, shard=1):
        self.values = np.asarray(values, np.float32)
        self.shape = self.values.shape
        self.shard = shard

    def __len__(self):
        return len(self.values)

    def rows(self, start, stop):
        return self.values[start:stop]

    def take(self, rows):
        return self.values[rows]

    def mapped_until(self, row):
        return min((row // self.shard + 1) * self.shard, len(self))


def whole_numbers(rows, columns=4, seed=0, spread=2):
    """Vectors of small whole numbers: scores are exact in float32, and many are equal."""
    return np.random.default_rng(seed).integers(-spread, spread + 1, size=(rows, columns)).astype(np.float32)


def near_ties(rows, seed=0):
    """Vectors that half precision rounds to a few: whole numbers about 2^20, which differ by less than 16.

    With queries of -1, 0 and 1, scores are exact in float32. Some vectors are far shorter than the rest.
    """
    generator = np.random.default_rng(seed)
    vectors = 2.0**20 + generator.integers(0, 4, size=(rows, 1)) * 2.0**12 + generator.integers(0, 16, size=(rows, 4))
    vectors[generator.random(rows) < 0.1] *= 2.0**-10
    return np.round(vectors).astype(np.float32)


def expected(queries, passages, k):
    scores = queries @ passages.T
    order = np.stack([np.lexsort((np.arange(len(passages)), -line)) for line in scores])[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def product_type(request, monkeypatch):
    """Runs a test with the blocks of the CPU, and with those of a GPU (which run on a CPU as well)."""
    if request.param != "float32":
        dtype = getattr(torch, request.param)
        monkeypatch.setattr(search, "FloatBlock", lambda vectors: HalfBlock(vectors, CPU, dtype))
    return request.param


def set_sizes(monkeypatch, **sizes):
    for name, value in sizes.items():
        monkeypatch.setattr(search, name, value)


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 10, 130, 500])
def test_search_is_a_full_sort_by_score_then_row_whatever_the_blocks(monkeypatch, product_type, block, k):
    set_sizes(monkeypatch, BLOCK_BYTES=block * 16, LINES=5, SPARE=2, TILE_COLUMNS=50, TILE_SCORES=100, SEGMENT=3)
    queries, passages = whole_numbers(23, seed=1), whole_numbers(130, seed=2)
    scores, rows = search.search(queries, Matrix(passages), 0, 130, k, CPU)
    want_scores, want_rows = expected(queries, passages, k)
    assert np.array_equal(rows, want_rows)
    assert np.array_equal(scores, want_scores)


def test_blocks_end_with_the_shard_where_it_is_mapped_and_go_over_every_row_once():
    sizes = {"first": 10, "last": 95, "mapped_bytes": 16 * 30}
    passages = Matrix(whole_numbers(100), shard=40)
    assert search.BLOCK_BYTES > 16 * 100
    assert [*search._blocks(passages, **sizes)] == [(10, 95)], "what is copied may be larger than what is mapped"
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch, BLOCK_BYTES=16 * 12)
        assert [*search._blocks(passages, **sizes)] == [(10, 40), (40, 70), (70, 82), (82, 95)]
        assert [*search._blocks(passages, 10, 60, 0)] == [(10, 22), (22, 34), (34, 46), (46, 58), (58, 60)]


@pytest.mark.parametrize("block", [100, 1000])
def test_near_ties_that_the_products_cannot_tell_apart_are_ranked_as_in_float32(monkeypatch, product_type, block):
    set_sizes(monkeypatch, BLOCK_BYTES=block * 16, SPARE=1, TILE_COLUMNS=64, SEGMENT=4, MOST_PROPOSALS=300)
    counts, best_of_block = [], search.best_of_block

    def counted(block, queries, k, least, count=None):
        counts.append(count)
        return best_of_block(block, queries, k, least, count)

    monkeypatch.setattr(search, "best_of_block", counted)
    queries, passages = whole_numbers(30, seed=1, spread=1), near_ties(700)
    scores, rows = search.search(queries, Matrix(passages), 0, 700, 20, CPU)
    want_scores, want_rows = expected(queries, passages, 20)
    assert np.array_equal(rows, want_rows)
    assert np.array_equal(scores, want_scores)
    assert {None, 84} <= set(counts), "more proposals were asked for"


def test_a_result_does_not_depend_on_blocks_for_any_vectors(monkeypatch, product_type):
    generator = np.random.default_rng(0)
    queries, passages = generator.normal(size=(20, 48)), 3 + generator.normal(size=(900, 48))
    passages[300:600] = passages[:300] * (1 + 1e-7)
    found = []
    for block in (50, 333, 900):
        set_sizes(monkeypatch, BLOCK_BYTES=block * 4 * 48, SPARE=1)
        found.append(search.search(queries, Matrix(passages), 0, 900, 40, CPU))
    for scores, rows in found[1:]:
        assert np.array_equal(rows, found[0][1])
        assert np.array_equal(scores, found[0][0])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("common", [0.0, 5.0])
@pytest.mark.parametrize("dimensions", [2, 96])
def test_no_proposal_is_off_by_more_than_it_says(product_type, scale, common, dimensions):
    generator = np.random.default_rng(0)
    queries = torch.from_numpy(generator.normal(size=(30, dimensions)).astype(np.float32))
    queries *= 2.0 ** -torch.arange(30)[:, None]
    passages = (scale * (common + generator.normal(size=(500, dimensions)))).astype(np.float32)
    block = search.FloatBlock(passages)
    coarse, error, columns = block.propose(queries, 500)
    scores = block.score(queries, columns)
    exact = queries.double() @ torch.from_numpy(passages).double().T
    assert ((coarse - scores).abs() <= error).all()
    sizes = 1e-5 * scale * queries.double().norm(dim=1, keepdim=True) * dimensions**0.5
    assert ((scores - exact.gather(1, columns)).abs() < sizes * 6).all()
    assert (columns.sort(dim=1).values == torch.arange(500)).all()


def test_half_precision_proposes_closely_enough_to_be_of_use():
    generator = np.random.default_rng(0)
    queries = torch.from_numpy(generator.normal(size=(8, 64)).astype(np.float32))
    passages = (10 + generator.normal(size=(2_000, 64))).astype(np.float32)
    coarse, error, _ = HalfBlock(passages, CPU).propose(queries, 2_000)
    assert (error.amax(1) < 0.02 * coarse.std(1)).all()


def search_share(folder, k, candidates):
    search.WINDOW_CANDIDATES, search.LINES = candidates, 2
    queries, passages = Matrix(whole_numbers(23, seed=1)), Matrix(whole_numbers(130, seed=2))
    found = [*search_together(queries, passages, k, CPU, Path(folder, "exchange"))]
    _, scores, rows = zip(*found, strict=True)
    return [part[0] for part in found], *(torch.from_numpy(np.concatenate(part)) for part in (scores, rows))


@pytest.mark.parametrize(
    ("k", "candidates", "starts"),
    [(10, 1000, [[0], [7], [15]]), (100, 400, [[0, 4], [7, 8, 12], [15, 16, 20]])],
)
def test_three_processes_find_what_one_finds_whatever_lay_there(tmp_path, k, candidates, starts):
    stale = tmp_path / "exchange" / "0123456789abcdef"
    stale.mkdir(parents=True)
    for piece in (0, 7, 15):
        for rank in range(3):
            for name in ("rows", "scores"):
                np.save(stale / f"{name}-{piece}-{rank}.npy", np.zeros((8, 10)))
    want_scores, want_rows = expected(whole_numbers(23, seed=1), whole_numbers(130, seed=2), k)
    parts = run_processes(search_share, 3, str(tmp_path), k, candidates)
    assert [part[0] for part in parts] == starts
    assert np.array_equal(np.concatenate([part[2] for part in parts]), want_rows)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), want_scores)
    assert not (tmp_path / "exchange").exists()


def test_one_process_removes_what_a_search_by_several_has_left(tmp_path):
    stale = tmp_path / "exchange" / "0123456789abcdef" / "rows-0-1.npy"
    stale.parent.mkdir(parents=True)
    stale.touch()
    search_share(tmp_path, 10, 1000)
    assert not (tmp_path / "exchange").exists()


def search_few(folder, factory):
    found = search_together(Matrix(np.eye(2)), Matrix(np.eye(2)), 5, CPU, Path(folder, "exchange"), factory)
    return [(first, scores.tolist(), rows.tolist()) for first, scores, rows in found]


@pytest.mark.parametrize("factory", ["Flat", "HNSW4"])
def test_there_may_be_more_processes_than_queries_and_passages(tmp_path, factory):
    first, second, third = run_processes(search_few, 3, str(tmp_path), factory)
    assert first == [(0, [], [])]
    assert second == [(0, [[1.0, 0.0]], [[0, 1]])]
    assert third == [(1, [[1.0, 0.0]], [[1, 0]])]


@pytest.mark.parametrize(("factory", "parameters"), [("IVF4,Flat", "nprobe=4"), ("HNSW32", "efSearch=300")])
def test_an_approximate_index_that_looks_everywhere_finds_what_exact_search_finds(
    monkeypatch, tmp_path, factory, parameters
):
    set_sizes(monkeypatch, BLOCK_BYTES=100 * 32)
    generator = np.random.default_rng(0)
    queries, passages = (Matrix(generator.normal(size=(rows, 8))) for rows in (15, 300))
    (exact,) = search_together(queries, passages, 9, CPU, tmp_path)
    (found,) = search_together(queries, passages, 9, CPU, tmp_path, factory, parameters)
    assert np.array_equal(found[2], exact[2])
    assert np.array_equal(found[1], exact[1])


def test_an_approximate_index_that_finds_too_few_says_so_with_minus_one():
    passages = Matrix(whole_numbers(40, seed=2))
    scores, rows = ApproximateIndex(passages, 0, 40, "IVF8,Flat", "nprobe=1").search(whole_numbers(5, seed=1), 40)
    assert (rows[:, -1] == -1).all()
    assert np.array_equal(scores == -np.inf, rows == -1)


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [("Flt", "", "not a description"), ("IVF4,Flat", "efSearch=9", "do not fit"), ("IVF99,Flat", "", "cannot be")],
)
def test_an_index_that_cannot_be_is_an_error(factory, parameters, message):
    with pytest.raises(InputError, match=message):
        ApproximateIndex(Matrix(whole_numbers(40)), 0, 40, factory, parameters)


def test_a_row_of_several_sequences_scores_as_its_best_one(tmp_path):
    generator = np.random.default_rng(0)
    row_starts = np.concatenate([[0], np.cumsum(generator.integers(1, 4, size=40))])
    queries, chunks = whole_numbers(9, seed=1), whole_numbers(row_starts[-1], seed=2)
    sequences = type("View", (), {"row_starts": row_starts, "rows": np.repeat(np.arange(40), np.diff(row_starts))})
    ((_, scores, rows),) = search_rows(Matrix(queries), Matrix(chunks), sequences, 12, CPU, tmp_path)
    by_row = np.maximum.reduceat(queries @ chunks.T, row_starts[:-1], axis=1)
    order = np.stack([np.lexsort((np.arange(40), -line)) for line in by_row])[:, :12]
    assert np.array_equal(rows, order)
    assert np.array_equal(scores, np.take_along_axis(by_row, order, axis=1))


def test_a_pairs_score_is_what_search_gives_it_to_the_bit(monkeypatch, product_type, tmp_path):
    set_sizes(monkeypatch, LINES=17)
    generator = np.random.default_rng(0)
    queries, passages = (Matrix(generator.normal(size=(rows, 50)), shard=7) for rows in (9, 40))
    starts = np.array([0, 1, 4, 5, 12, 20, 21, 33, 40])  # eight rows of one to twelve sequences
    sequences = SimpleNamespace(row_starts=starts, rows=np.repeat(np.arange(8), np.diff(starts)))
    ((_, scores, rows),) = search_rows(queries, passages, sequences, 8, CPU, tmp_path)
    pairs = generator.permutation(rows.size)
    of_query, of_passage = np.repeat(np.arange(9), 8)[pairs], rows.ravel()[pairs]
    found = score_pairs(queries, passages, sequences, of_query, of_passage, CPU)
    assert found.dtype == np.float32
    assert np.array_equal(found, scores.ravel()[pairs])
    assert score_pairs(queries, passages, sequences, pairs[:0], pairs[:0], CPU).shape == (0,)


def test_the_score_of_a_pair_on_a_gpu_does_not_depend_on_the_others():
    queries, vectors = torch.randn(40, 100), torch.randn(40, 100)
    block, lines = HalfBlock(vectors.numpy(), CPU), torch.arange(40)
    together = block.score(queries, lines[:, None])
    alone = torch.cat([block.score(queries[i : i + 1], lines[i : i + 1, None]) for i in range(40)])
    assert torch.equal(together, alone)
    assert torch.allclose(together[:, 0], (queries * vectors).sum(1), atol=1e-4)


def test_sequences_that_an_index_did_not_find_are_no_rows():
    scores, sequences = np.array([[3.0, 2.0, -np.inf, -np.inf]]), np.array([[0, 4, -1, -1]])
    top, rows = best_chunks(scores, sequences, np.array([0, 0, 1, 1, 2, 2]), 3)
    assert rows.tolist() == [[0, 2, -1]]
    assert top.tolist() == [[3.0, 2.0, -np.inf]]


def test_a_ranking_with_too_few_rows_is_padded():
    scores, rows = best_chunks(np.array([[3.0, 2.0, 1.0]]), np.array([[4, 5, 0]]), np.array([0, 0, 1, 1, 2, 2]), 3)
    assert rows.tolist() == [[2, 0, -1]]
    assert scores.tolist() == [[3.0, 1.0, -np.inf]]
