"""Batches: right tokens, no padding, each distinct text once."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.losses import CONTRASTIVE, LOSSES
from tests.tiny_models import random_episode, random_store, samples_of
from utils import batching
from utils.batching import AttentionBlocks, PackedTokens, Sequences, pack, prefetch
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.samples import Triplets, make_batch, make_step_batches, step_batches


def rows_of(tokens):
    return [tuple(row.tolist()) for row in tokens.input_ids.split(tokens.lengths)]


@pytest.mark.parametrize("chunk_length", [None, 5, 100])
def test_a_pack_holds_each_sequence_and_nothing_else(tmp_path, chunk_length):
    store = random_store(tmp_path / "s", 20, pad_token_id=3)
    sequences = Sequences(store, chunk_length)
    pieces = [
        (row, tuple(store[row][start : start + (chunk_length or 1000)].tolist()))
        for row in range(20)
        for start in range(0, len(store[row]), chunk_length or 1000)
    ]
    assert sequences.rows.tolist() == [row for row, _ in pieces]
    chosen = np.array([4, 0, 4, len(pieces) - 1, 7])
    tokens = pack([(sequences, chosen)])
    assert rows_of(tokens) == [pieces[i][1] for i in chosen]
    assert tokens.positions.tolist() == [place for length in tokens.lengths for place in range(length)]
    assert (tokens.positions[tokens.first] == 0).all()
    assert [length for count, length in tokens.runs for _ in range(count)] == tokens.lengths


def test_on_a_gpu_a_pack_has_bounds_and_blocks_with_every_token_in_one_place(tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "move", lambda value, device: value)
    lengths = [5, 1, 30, 2, 2, 17, 9]
    tokens = PackedTokens(*[torch.arange(sum(lengths))] * 3, lengths).to(torch.device("cuda"))
    assert tokens.bounds.dtype == torch.int32
    assert tokens.bounds.tolist() == [0, 5, 6, 36, 38, 40, 57, 66]
    assert_every_token_has_a_place(tokens.blocks, lengths, [(2, 8), (2, 8), (2, 24), (1, 32)])


def test_on_a_cpu_a_sequence_is_padded_by_its_own_length_alone():
    lengths = [5, 1, 30, 2, 8, 17, 9]
    blocks = AttentionBlocks.by_length(lengths, 8)
    assert_every_token_has_a_place(blocks, lengths, [(4, 8), (1, 16), (1, 24), (1, 32)])


def assert_every_token_has_a_place(blocks, lengths, shapes):
    """And all of a sequence are in the row that is its own; a block of shape (b, L) has b rows of L tokens."""
    present = [block.squeeze((1, 2)) for block in blocks.present]
    assert [tuple(block.shape) for block in present] == shapes
    assert torch.equal(
        torch.cat([block.flatten() for block in present]).nonzero()[:, 0], blocks.token_place.sort()[0]
    )
    rows = [row for block in present for row in block]
    assert [int(rows[place].sum()) for place in blocks.sequence_place.tolist()] == lengths
    line = torch.cat([torch.full(row.shape, number) for number, row in enumerate(rows)])
    owners = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert torch.equal(line[blocks.token_place], blocks.sequence_place[owners])


def test_a_pack_of_two_stores_in_an_order(tmp_path):
    stores = random_store(tmp_path / "a", 5, seed=1), random_store(tmp_path / "b", 5, seed=2)
    numbers, order = (np.array([3, 1]), np.array([0, 4, 4])), np.array([4, 0, 2, 3, 1])
    tokens = pack([(Sequences(store), own) for store, own in zip(stores, numbers, strict=True)], order)
    expected = [tuple(store[row].tolist()) for store, own in zip(stores, numbers, strict=True) for row in own]
    assert rows_of(tokens) == [expected[i] for i in order]


def test_a_shorter_row_repeats_its_first_sequence(tmp_path):
    sequences = Sequences(random_store(tmp_path / "s", 20), 5)
    for row, numbers in enumerate(sequences.of_rows(np.arange(20))):
        own = np.flatnonzero(sequences.rows == row)
        assert numbers[: len(own)].tolist() == own.tolist()
        assert (numbers[len(own) :] == own[0]).all()


def test_an_empty_row_is_one_token_of_padding(tmp_path):
    from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store

    (tmp_path / "source").write_text("x")
    with create_token_store(tmp_path / "s", TokenizerInfo("t", "f", 10, 0), 8, tmp_path / "source") as writer:
        writer.append(["a", "b"], [[], [5]])
    for chunk_length in (None, 4):
        sequences = Sequences(TokenStore(tmp_path / "s"), chunk_length)
        assert len(sequences) == 2
        assert rows_of(pack([(sequences, np.arange(2))])) == [(0,), (5,)]


@pytest.mark.parametrize("chunk_length", [None, 6])
def test_triplets_find_their_texts_and_each_text_stands_once_a_cluster(tmp_path, chunk_length):
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    sequences = Sequences(passages, chunk_length)
    episode = random_episode(8, 12, n_groups=3)
    triplets = np.arange(10, 60)
    batch = make_batch(Triplets(episode), triplets, Sequences(queries), sequences)
    texts = rows_of(batch.tokens)
    serves = {}
    for i, triplet in enumerate(triplets):
        line = np.searchsorted(episode.starts, triplet, side="right") - 1
        assert texts[batch.query[i]] == tuple(queries[episode.query_rows[line]].tolist())
        assert batch.clusters[i] == episode.clusters[line]
        serves.setdefault(int(batch.query[i]), set()).add(int(batch.clusters[i]))
        for index, row in (
            (batch.candidates[i, 0], episode.positive_rows[line]),
            (batch.candidates[i, 1], episode.negative_rows[triplet]),
        ):
            own = sequences.of_rows(np.array([row]))[0]
            wanted = [tokens_of(sequences, number) for number in own]
            assert [texts[j] for j in index[: len(own)]] == wanted
            for j in index:
                serves.setdefault(int(j), set()).add(int(batch.clusters[i]))
    assert [serves[i] for i in range(len(texts))] == [{int(cluster)} for cluster in batch.sequence_clusters]
    assert batch.sequence_clusters.tolist() == sorted(batch.sequence_clusters.tolist())
    own = [texts[i] for i in batch.query.unique()]
    assert len(own) == len({int(episode.query_rows[line]) for line in episode.line_of(triplets)})
    assert len(texts) < 2 * len(triplets)
    assert batch.token_clusters.tolist() == [
        int(cluster) for cluster, row in zip(batch.sequence_clusters, texts, strict=True) for _ in row
    ]


def tokens_of(sequences, number):
    return tuple(sequences.tokens[sequences.offsets[number] : sequences.offsets[number + 1]].tolist())


def test_a_process_without_a_triplet_gets_one_that_counts_for_nothing(tmp_path):
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    episode = random_episode(8, 12, n_groups=3)
    full, empty = make_step_batches(
        Triplets(episode), [np.arange(3), np.arange(0)], Sequences(queries), Sequences(passages)
    )
    assert (full.clusters >= 0).all()
    assert empty.clusters.tolist() == [-1]
    assert set(empty.sequence_clusters.tolist()) == {-1}
    assert torch.equal(empty.weights, torch.ones(1))


def test_a_position_beyond_the_mined_file_is_of_another_one(tmp_path):
    queries, passages = (Sequences(random_store(tmp_path / name, 12)) for name in "qp")
    episode = replace(random_episode(12, 12, n_groups=3), path=tmp_path / "mined")
    with pytest.raises(
        InputError, match=f"mined: .*number {episode.triplets} of the {episode.triplets} triplets of this mined file"
    ):
        step_batches(Triplets(episode), episode.triplets, 4, 1, queries, passages, torch.device("cpu"))
    assert Triplets(episode).most(4) == 4
    steps = step_batches(Triplets(episode), episode.triplets - 1, 4, 1, queries, passages, torch.device("cpu"))
    assert next(steps)[1] == 0
    steps.close()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_process_knows_the_clusters_that_all_processes_have(tmp_path, monkeypatch, loss):
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    episode = random_episode(8, 12, n_groups=5, lines=9, together=3)
    samples = samples_of(loss, episode, queries, passages)
    last = int(episode.block_starts[-2]) if loss is CONTRASTIVE else len(samples) - 1
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    told, own = [], []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        steps = step_batches(samples, last, 3, 2, Sequences(queries), Sequences(passages), torch.device("cpu"))
        taken = [next(steps)[0] for _ in range(2)]
        steps.close()
        told.append([[clusters.tolist() for clusters in step.clusters] for step in taken])
        clusters = [torch.cat([batch.clusters for batch in step.batches]).unique() for step in taken]
        own.append([of_step[of_step >= 0].tolist() for of_step in clusters])
    assert told[0] == told[1] == told[2] == [list(of_step) for of_step in zip(*own, strict=True)]
    assert [] in told[0][0], "there is nothing for a process"


def test_prefetching_gives_every_step_in_order_and_is_one_ahead():
    made, ahead = [], threading.Event()

    def make(position):
        made.append(position)
        if position == 5:
            ahead.set()
        return f"step at {position}", (position + 2) % 7

    steps = prefetch(make, 3)
    assert next(steps) == ("step at 3", 5)
    assert ahead.wait(10)
    assert [next(steps) for _ in range(3)] == [("step at 5", 0), ("step at 0", 2), ("step at 2", 4)]
    steps.close()
    assert made == [3, 5, 0, 2, 4]


def test_what_fails_in_the_background_is_raised_when_its_turn_comes():
    def make(position):
        return position, 10 // position - 10  # the second step has position 0

    steps = prefetch(make, 1)
    assert next(steps) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(steps)


def test_steps_over_blocks_take_every_line_once_in_whole_blocks(tmp_path, monkeypatch):
    episode = random_episode(8, 12, n_groups=3, lines=40, together=3)
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    blocks = samples_of(CONTRASTIVE, episode, queries, passages)
    starts, steps, position, taken = set(episode.block_starts.tolist()), 0, 0, []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    expected = blocks.steps_left(0, 7, 2)  # 2 blocks of up to 3 lines in a batch of 7
    assert [blocks.most(size) for size in (3, 5, 6, 7)] == [3, 3, 6, 6]
    while True:
        parts, following = blocks.take(position, 7, 2)
        assert [len(of_process) for of_process in parts] == [2, 2]
        of_step = [part for of_process in parts for part in of_process]
        for part in of_step:
            assert len(part) <= 7
            assert not len(part) or {part[0], part[-1] + 1} <= starts
        assert sum(len(np.unique(np.searchsorted(episode.block_starts, p, "right"))) for p in of_step) <= 8
        taken, steps, position = taken + np.concatenate(of_step).tolist(), steps + 1, following
        if not position:
            break
        assert blocks.steps_left(position, 7, 2) == expected - steps
    assert steps == expected
    assert taken == list(range(40))


def test_what_is_no_block_of_the_file_or_too_large_for_a_batch_is_told(tmp_path):
    episode = replace(random_episode(8, 12, n_groups=3, lines=40, together=3), path=tmp_path / "mined")
    queries, passages = random_store(tmp_path / "q", 8, seed=1), random_store(tmp_path / "p", 12, seed=2)
    blocks = samples_of(CONTRASTIVE, episode, queries, passages)
    inside = next(line for line in range(40) if line not in episode.block_starts)
    rest = Sequences(queries), Sequences(passages), torch.device("cpu")
    with pytest.raises(
        InputError, match=f"mined: .*stands at line {inside} of this mined file, where no block begins"
    ):
        step_batches(blocks, inside, 6, 1, *rest)
    with pytest.raises(
        InputError, match=r"mined: --per_gpu_train_batch_size is 2, and a block .* 3 lines.* multiple of it"
    ):
        step_batches(blocks, 0, 2, 1, *rest)
    with pytest.raises(
        InputError, match=r"mined: was mined without blocks.*--queries_together, or .* --loss pairwise"
    ):
        samples_of(CONTRASTIVE, replace(episode, block_starts=None), queries, passages)
