"""Exact search against a plain sort, ties and shares included."""

import numpy as np
import pytest
import torch

from tests.processes import run_processes
from utils import search
from utils.search import best_chunks, search_rows, search_together

CPU = torch.device("cpu")


class Matrix:
    """An embedding matrix in memory."""

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    def __len__(self):
        return len(self.values)

    def rows(self, start, stop):
        return self.values[start:stop]


def whole_numbers(rows, columns=4, seed=0, spread=2):
    """Vectors of small whole numbers: scores are exact in float32, and many are equal."""
    return np.random.default_rng(seed).integers(-spread, spread + 1, size=(rows, columns)).astype(np.float32)


def expected(queries, passages, k):
    scores = queries @ passages.T
    order = np.stack([np.lexsort((np.arange(len(passages)), -line)) for line in scores])[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 10, 130, 500])
def test_search_is_a_full_sort_by_score_then_row_whatever_the_blocks(monkeypatch, block, k):
    monkeypatch.setattr(search, "PASSAGE_BLOCK", block)
    monkeypatch.setattr(search, "SCORE_BLOCK", 200)
    queries, passages = whole_numbers(23, seed=1), whole_numbers(130, seed=2)
    scores, rows = search.search(queries, Matrix(passages), 0, 130, k, CPU)
    want_scores, want_rows = expected(queries, passages, k)
    assert np.array_equal(rows, want_rows)
    assert np.array_equal(scores, want_scores)


def search_share(folder, k):
    from pathlib import Path

    queries, passages = Matrix(whole_numbers(23, seed=1)), Matrix(whole_numbers(130, seed=2))
    first, scores, rows = search_together(queries, passages, k, CPU, Path(folder, "exchange"))
    return first, torch.from_numpy(scores), torch.from_numpy(rows)


@pytest.mark.parametrize("k", [10, 100])
def test_three_processes_find_what_one_finds(tmp_path, k):
    want_scores, want_rows = expected(whole_numbers(23, seed=1), whole_numbers(130, seed=2), k)
    parts = run_processes(search_share, 3, str(tmp_path), k)
    assert [part[0] for part in parts] == [0, 7, 15]
    assert np.array_equal(np.concatenate([part[2] for part in parts]), want_rows)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), want_scores)
    assert not (tmp_path / "exchange").exists()


def test_a_row_of_several_sequences_scores_as_its_best_one(tmp_path):
    generator = np.random.default_rng(0)
    row_starts = np.concatenate([[0], np.cumsum(generator.integers(1, 4, size=40))])
    queries, chunks = whole_numbers(9, seed=1), whole_numbers(row_starts[-1], seed=2)
    sequences = type("View", (), {"row_starts": row_starts, "rows": np.repeat(np.arange(40), np.diff(row_starts))})
    _, scores, rows = search_rows(Matrix(queries), Matrix(chunks), sequences, 12, CPU, tmp_path)
    by_row = np.maximum.reduceat(queries @ chunks.T, row_starts[:-1], axis=1)
    order = np.stack([np.lexsort((np.arange(40), -line)) for line in by_row])[:, :12]
    assert np.array_equal(rows, order)
    assert np.array_equal(scores, np.take_along_axis(by_row, order, axis=1))


def test_a_ranking_with_too_few_rows_is_padded():
    scores, rows = best_chunks(np.array([[3.0, 2.0, 1.0]]), np.array([[4, 5, 0]]), np.array([0, 0, 1, 1, 2, 2]), 3)
    assert rows.tolist() == [[2, 0, -1]]
    assert scores.tolist() == [[3.0, 1.0, -np.inf]]
