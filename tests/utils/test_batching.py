"""Batches: right tokens, little padding, each distinct text once."""

import numpy as np
import pytest
import torch

from tests.tiny_models import random_episode, random_store
from utils.batching import Sequences, make_step_batches, make_triplet_batch


def rows_of(batch):
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]


@pytest.mark.parametrize("chunk_length", [None, 5, 100])
def test_a_padded_batch_holds_each_sequence_and_nothing_else(tmp_path, chunk_length):
    store = random_store(tmp_path / "s", 20, pad_token_id=3)
    sequences = Sequences(store, chunk_length)
    pieces = [
        (row, tuple(store[row][start : start + (chunk_length or 1000)].tolist()))
        for row in range(20)
        for start in range(0, len(store[row]), chunk_length or 1000)
    ]
    assert sequences.rows.tolist() == [row for row, _ in pieces]
    chosen = np.array([4, 0, 4, len(pieces) - 1, 7])
    batch = sequences.pad(chosen)
    assert rows_of(batch) == [pieces[i][1] for i in chosen]
    assert (batch.input_ids[batch.attention_mask == 0] == 3).all()
    longest = int(sequences.lengths[chosen].max())
    assert longest <= batch.input_ids.shape[1] < longest + 8


def test_a_shorter_row_repeats_its_first_sequence(tmp_path):
    sequences = Sequences(random_store(tmp_path / "s", 20), 5)
    for row, numbers in enumerate(sequences.of_rows(np.arange(20))):
        own = np.flatnonzero(sequences.rows == row)
        assert numbers[: len(own)].tolist() == own.tolist()
        assert (numbers[len(own) :] == own[0]).all()


def test_an_empty_row_is_one_sequence_of_padding(tmp_path):
    from utils.token_store import TokenizerInfo, TokenStore, create_token_store

    (tmp_path / "source").write_text("x")
    with create_token_store(tmp_path / "s", TokenizerInfo("t", "f", 10, 0), 8, tmp_path / "source") as writer:
        writer.append(["a", "b"], [[], [5]])
    for chunk_length in (None, 4):
        sequences = Sequences(TokenStore(tmp_path / "s"), chunk_length)
        assert len(sequences) == 2
        assert rows_of(sequences.pad(np.arange(2))) == [(), (5,)]


@pytest.mark.parametrize("chunk_length", [None, 6])
def test_triplets_find_their_texts_and_each_text_stands_once_a_cluster(tmp_path, chunk_length):
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    sequences = Sequences(passages, chunk_length)
    episode = random_episode(8, 12, n_groups=3)
    triplets = np.arange(10, 60)
    batch = make_triplet_batch(episode, triplets, Sequences(queries), sequences)
    query_rows, passage_rows = rows_of(batch.queries), rows_of(batch.passages)
    serves = {}
    for i, triplet in enumerate(triplets):
        line = np.searchsorted(episode.starts, triplet, side="right") - 1
        assert query_rows[batch.query[i]] == tuple(queries[episode.query_rows[line]].tolist())
        assert batch.clusters[i] == episode.clusters[line]
        for index, row in (
            (batch.positive[i], episode.positive_rows[line]),
            (batch.negative[i], episode.negative_rows[triplet]),
        ):
            own = sequences.of_rows(np.array([row]))[0]
            wanted = [passage_rows_of(sequences, number) for number in own]
            assert [passage_rows[j] for j in index[: len(own)]] == wanted
            for j in index:
                serves.setdefault(int(j), set()).add(int(batch.clusters[i]))
    assert all(len(clusters) == 1 for clusters in serves.values())
    assert len(serves) == len(passage_rows) < 2 * len(triplets)
    assert len(query_rows) == len({int(episode.query_rows[line]) for line in episode.line_of(triplets)})


def passage_rows_of(sequences, number):
    return tuple(sequences.tokens[sequences.offsets[number] : sequences.offsets[number + 1]].tolist())


def test_a_process_without_a_triplet_gets_one_that_counts_for_nothing(tmp_path):
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    episode = random_episode(8, 12, n_groups=3)
    full, empty = make_step_batches(episode, [np.arange(3), np.arange(0)], Sequences(queries), Sequences(passages))
    assert (full.clusters >= 0).all()
    assert empty.clusters.tolist() == [-1]
    assert torch.equal(empty.weights, torch.ones(1))
