"""Embeddings: in row order, shared out, reused while nothing changed, and gone on with after a crash."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoders import load_encoder
from tests.processes import run_processes
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import padded_vectors, random_store, tiny_bert, tiny_roberta
from utils import encoding
from utils.batching import PackedTokens, Sequences
from utils.checkpoint import fingerprint_of_weights
from utils.embedding_store import EmbeddingSource, ShardWriter, find_embeddings
from utils.encoding import check_length, encode_store, share_of_rows
from utils.errors import InputError
from utils.precision import Precision

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 8, "chunk_length": None, "device": CPU, "precision": Precision("cpu", torch.float32)}
ONE, OTHER = (EmbeddingSource(weights, "t", 24, 0, "float32", rows=4, dimensions=2) for weights in ("1", "2"))


def one_by_one(encoder, store, pieces=None):
    rows = [torch.from_numpy(store[row].astype(np.int64)) for row in range(len(store))]
    rows = [piece for row in rows for piece in (row.split(pieces) if pieces else [row])]
    with torch.inference_mode():
        return torch.cat([padded_vectors(encoder, row[None], torch.ones_like(row)[None]) for row in rows]).numpy()


@pytest.mark.parametrize("chunk_length", [None, 7])
def test_a_matrix_holds_each_rows_own_vector_in_row_order(tmp_path, monkeypatch, chunk_length):
    monkeypatch.setattr(encoding, "WINDOW", 10)
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 37)
    settings = SETTINGS | {"chunk_length": chunk_length}
    matrix = encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **settings)
    expected = one_by_one(encoder, store, chunk_length)
    assert matrix.shape == expected.shape == (len(Sequences(store, chunk_length)), 16)
    np.testing.assert_allclose(matrix.rows(0, len(matrix)), expected, atol=1e-5)
    np.testing.assert_allclose(matrix.rows(5, 9), expected[5:9], atol=1e-5)


class Counting(torch.nn.Module):
    """Counts the texts that it encodes, and fails after some."""

    def __init__(self, encoder, limit=10**9):
        super().__init__()
        self.encoder, self.limit, self.texts = encoder, limit, 0
        self.embedding_dim, self.config = encoder.embedding_dim, encoder.config

    def forward(self, tokens):
        self.texts += len(tokens)
        if self.texts > self.limit:
            raise KeyboardInterrupt
        return self.encoder(tokens)


def test_a_matrix_of_the_same_source_is_reused_and_of_any_other_made_again(tmp_path):
    encoder, store = Counting(tiny_bert().eval()), random_store(tmp_path / "passages", 20)

    def encoded(store=store, weights="w", **change):
        encoder.texts = 0
        encode_store(encoder, store, "passages", tmp_path / "embeddings", weights, **SETTINGS | change)
        return encoder.texts

    assert encoded() == 20
    assert encoded() == 0
    assert encoded(batch_size=3) == 0
    assert encoded(weights="other") == 20
    assert encoded() == 20
    assert encoded(store=random_store(tmp_path / "others", 20, seed=5)) == 20
    assert encoded(precision=Precision("cpu", torch.bfloat16)) == 20


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "WINDOW", 10)
    encoder, store = Counting(tiny_bert().eval(), limit=25), random_store(tmp_path / "passages", 37)
    with pytest.raises(KeyboardInterrupt):
        encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **SETTINGS)
    assert not (tmp_path / "embeddings" / "manifest.json").exists()

    encoder.limit, encoder.texts = 10**9, 0
    matrix = encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **SETTINGS)
    assert encoder.texts == 17
    np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(encoder.encoder, store), atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == [
        "manifest.json",
        "passages.0-of-1.npy",
    ]


def test_an_unfinished_shard_of_another_source_is_not_gone_on_with(tmp_path):
    writer = ShardWriter(tmp_path, "passages", 0, 1, 4, ONE)
    writer.write(np.arange(2), np.ones((2, 2), np.float32))
    writer.mark(2)
    assert ShardWriter(tmp_path, "passages", 0, 1, 4, ONE).done == 2
    assert ShardWriter(tmp_path, "passages", 0, 1, 4, OTHER).done == 0


@pytest.mark.parametrize("died_after", ["the first rows", "all rows", "its shard"])
def test_a_crash_of_another_source_in_the_same_folder_leaves_none_of_its_vectors(tmp_path, monkeypatch, died_after):
    monkeypatch.setattr(encoding, "WINDOW", 10)
    folder, store = tmp_path / "embeddings", random_store(tmp_path / "passages", 37)
    first, other = tiny_bert().eval(), tiny_bert(seed=1).eval()
    encode_store(first, store, "passages", folder, "first", **SETTINGS)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if died_after == "the first rows":
            other = Counting(other, limit=15)
        elif died_after == "all rows":
            patch.setattr(ShardWriter, "close", die)
        else:
            patch.setattr(encoding, "record_embeddings", die)
        with pytest.raises(KeyboardInterrupt):
            encode_store(other, store, "passages", folder, "other", **SETTINGS)
    matrix = encode_store(first, store, "passages", folder, "first", **SETTINGS)
    np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(first, store), atol=1e-5)


def test_a_crash_leaves_the_manifests_other_matrices_valid(tmp_path):
    encoder, folder = tiny_bert().eval(), tmp_path / "embeddings"
    queries, passages = random_store(tmp_path / "query", 9), random_store(tmp_path / "passages", 20)
    for store, name in ((queries, "query"), (passages, "passages")):
        encode_store(encoder, store, name, folder, "w", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        encode_store(Counting(encoder, limit=5), passages, "passages", folder, "other", **SETTINGS)
    assert list(json.loads((folder / "manifest.json").read_text())["matrices"]) == ["query"]


def test_rows_marked_before_another_source_began_anew_are_forgotten(tmp_path):
    writer = ShardWriter(tmp_path, "passages", 0, 1, 4, ONE)
    writer.write(np.arange(2), np.ones((2, 2), np.float32))
    writer.mark(2)
    ShardWriter(tmp_path, "passages", 0, 1, 4, OTHER)  # and dies before its first mark
    assert ShardWriter(tmp_path, "passages", 0, 1, 4, ONE).done == 0


def test_a_mark_does_not_vouch_for_another_sources_finished_shard(tmp_path):
    finished = ShardWriter(tmp_path, "passages", 0, 1, 4, OTHER)
    finished.write(np.arange(4), np.full((4, 2), 9, np.float32))
    finished.close()
    for first in (0, 2):  # dies between its two marks
        writer = ShardWriter(tmp_path, "passages", 0, 1, 4, ONE)
        assert writer.done == first
        writer.write(np.arange(first, first + 2), np.ones((2, 2), np.float32))
        writer.mark(first + 2)
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "passages.0-of-1.npy"), np.ones((4, 2)))


@pytest.mark.parametrize(
    ("encoder", "positions"),
    [(tiny_bert(positions=64), 64), (tiny_bert(positions=60), 60), (tiny_roberta(positions=66), 64)],
)
def test_a_text_may_have_as_many_tokens_as_the_encoder_has_positions_and_no_more(encoder, positions):
    ids = torch.full((positions,), 7)
    encoder(PackedTokens(ids, torch.arange(positions), torch.tensor([0]), [positions]))
    check_length(encoder.config, "passages", positions)
    check_length(encoder.config, "passages", 1024, chunk_length=positions)
    for lengths in ((positions + 1,), (1024, positions + 1)):
        with pytest.raises(InputError, match=f"passages may have {positions + 1} tokens.*--max_seq_length"):
            check_length(encoder.config, "passages", *lengths)


def test_a_store_of_longer_texts_than_the_encoder_reads_is_refused_before_anything_is_written(tmp_path):
    store = random_store(tmp_path / "passages", 5, longest=200)
    with pytest.raises(InputError, match="passages may have 200 tokens"):
        encode_store(tiny_bert().eval(), store, "passages", tmp_path / "embeddings", "w", **SETTINGS)
    assert not (tmp_path / "embeddings").exists()


def encode_with_a_plain_roberta(folder: str) -> list[float]:
    encoder, _ = load_encoder("rdot_nll", str(Path(folder, "roberta")))
    store = random_store(Path(folder, f"store-{torch.distributed.get_rank()}"), 37)
    weights = fingerprint_of_weights(Path(folder, "roberta"), encoder)
    matrix = encode_store(encoder.eval(), store, "passages", Path(folder, "embeddings"), weights, **SETTINGS)
    return matrix.rows(0, 37).tolist()


def test_processes_that_each_load_a_plain_roberta_encode_with_one_head(tmp_path):
    tiny_bert_tokenizer(tmp_path / "roberta")
    tiny_roberta().roberta.save_pretrained(tmp_path / "roberta")
    one, other = run_processes(encode_with_a_plain_roberta, 2, str(tmp_path))
    encoder, _ = load_encoder("rdot_nll", str(tmp_path / "roberta"))
    expected = one_by_one(encoder.eval(), random_store(tmp_path / "store", 37))
    np.testing.assert_allclose(one, expected, atol=1e-5)
    assert one == other


def encode_in_folder(folder: str) -> list[int]:
    store = random_store(Path(folder, f"store-{torch.distributed.get_rank()}"), 37)
    matrix = encode_store(tiny_bert().eval(), store, "passages", Path(folder, "embeddings"), "w", **SETTINGS)
    return [len(matrix), matrix.shape[1]]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_one_matrix(tmp_path, processes):
    assert run_processes(encode_in_folder, processes, str(tmp_path)) == [[37, 16]] * processes
    store = random_store(tmp_path / "store", 37)
    source = EmbeddingSource("w", store.meta.sha256, 24, 0, "float32", rows=37, dimensions=16)
    matrix = find_embeddings(tmp_path / "embeddings", "passages", source)
    np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(tiny_bert().eval(), store), atol=1e-5)
    np.testing.assert_array_equal(matrix.rows(9, 30), matrix.rows(0, 37)[9:30])


def test_shares_cover_all_rows_and_have_about_the_same_number_of_tokens():
    lengths = np.random.default_rng(0).integers(1, 200, size=5000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shares = [share_of_rows(offsets, shard, 7) for shard in range(7)]
    assert [share[0] for share in shares] == [0] + [share[1] for share in shares[:-1]]
    assert shares[-1][1] == 5000
    tokens = [offsets[stop] - offsets[start] for start, stop in shares]
    assert max(tokens) - min(tokens) < 400


def test_more_processes_than_rows_leave_some_with_nothing(tmp_path):
    offsets = np.array([0, 5, 9])
    shares = [share_of_rows(offsets, shard, 4) for shard in range(4)]
    assert sum(stop - start for start, stop in shares) == 2
    source = EmbeddingSource("w", "t", 24, 0, "float32", rows=0, dimensions=3)
    ShardWriter(tmp_path, "passages", 0, 1, 0, source).close()
    assert np.load(tmp_path / "passages.0-of-1.npy").shape == (0, 3)


def test_a_vector_that_is_not_finite_is_an_error(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 5)
    torch.nn.init.constant_(encoder.bert.encoder.layer[1].output.LayerNorm.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **SETTINGS)


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 20)
    encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **SETTINGS)
    shard = tmp_path / "embeddings" / "passages.0-of-1.npy"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"passages\.0-of-1\.npy"):
        encode_store(encoder, store, "passages", tmp_path / "embeddings", "w", **SETTINGS)
