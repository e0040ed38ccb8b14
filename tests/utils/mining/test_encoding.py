"""Embeddings: in row order, shared out, reused while nothing changed, and gone on with after a crash."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, get_ident

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.processes import run_processes
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import load_encoder, padded_vectors, random_store, tiny_bert, tiny_roberta
from utils.batching import PackedTokens, Sequences
from utils.mining import encoding
from utils.mining.encoding import (
    check_length,
    cut_batches,
    encode,
    encode_store,
    open_sequences,
    order_by_length,
    share_of_rows,
)
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.precision import Precision
from utils.runtime.stopping import Stopped
from utils.stores import embedding_store
from utils.stores.checkpoint import fingerprint_of_weights
from utils.stores.embedding_store import (
    EmbeddingSource,
    ShardWriter,
    find_embeddings,
    open_embeddings,
    record_embeddings,
    remove_earlier_embeddings,
    shards_are_whole,
)
from utils.stores.token_store import TokenizerInfo, create_token_store

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 8, "device": CPU, "precision": Precision("cpu", torch.float32)}
ONE, OTHER = (
    EmbeddingSource(weights, "t", 24, 0, "float32", "float32", rows=4, dimensions=2) for weights in ("1", "2")
)


def encoded(encoder, store, folder, weights="w", *, name="passages", chunk_length=None, **change):
    return encode_store(encoder, Sequences(store, chunk_length), name, folder, weights, **SETTINGS | change)


def one_by_one(encoder, store, pieces=None):
    rows = [torch.from_numpy(store[row].astype(np.int64)) for row in range(len(store))]
    rows = [piece for row in rows for piece in (row.split(pieces) if pieces else [row])]
    with torch.inference_mode():
        return torch.cat([padded_vectors(encoder, row[None], torch.ones_like(row)[None]) for row in rows]).numpy()


@pytest.mark.parametrize("chunk_length", [None, 7])
def test_a_matrix_holds_each_rows_own_vector_in_row_order(tmp_path, monkeypatch, chunk_length):
    monkeypatch.setattr(encoding, "WINDOW", 10)
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 37)
    matrix = encoded(encoder, store, tmp_path / "embeddings", chunk_length=chunk_length)
    expected = one_by_one(encoder, store, chunk_length)
    assert matrix.shape == expected.shape == (len(Sequences(store, chunk_length)), 16)
    np.testing.assert_allclose(matrix.rows(0, len(matrix)), expected, atol=1e-5)
    np.testing.assert_allclose(matrix.rows(5, 9), expected[5:9], atol=1e-5)


class Counting(torch.nn.Module):
    """Notes the batches that it encodes, and is killed (or stopped) at the one after `limit` of them."""

    def __init__(self, encoder, limit=10**9, end=KeyboardInterrupt):
        super().__init__()
        self.encoder, self.limit, self.end, self.batches = encoder, limit, end, []
        self.embedding_dim, self.config, self.reading = encoder.embedding_dim, encoder.config, encoder.reading

    def forward(self, tokens):
        if len(self.batches) == self.limit:
            raise self.end
        self.batches.append((tokens.input_ids.tolist(), tokens.lengths))
        return self.encoder(tokens)

    def with_weights(self, dtype):
        return self


@pytest.fixture
def use_threads():
    """`torch.set_num_threads`, undone at the end. With one thread, batches are encoded in their order."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_matrix_of_the_same_source_is_reused_and_of_any_other_made_again(tmp_path):
    encoder, store = Counting(tiny_bert().eval()), random_store(tmp_path / "passages", 20)

    def texts(store=store, weights="w", **change):
        encoder.batches.clear()
        matrix = encoded(encoder, store, tmp_path / "embeddings", weights, **change)
        assert matrix.rows(0, 20).dtype == matrix.all().dtype == np.float32
        return sum(len(lengths) for _, lengths in encoder.batches)

    assert texts() == 20
    assert texts() == 0
    assert texts(batch_size=3) == 0
    assert texts(weights="other") == 20
    assert texts() == 20
    assert texts(store=random_store(tmp_path / "others", 20, seed=5)) == 20
    assert texts(precision=Precision("cpu", torch.bfloat16)) == 20
    assert texts(dtype="float16") == 20
    assert texts(dtype="float16") == 0
    assert texts(dtype="float32") == 20


def test_a_matrix_that_this_process_sees_later_than_the_main_one_is_waited_for(tmp_path, monkeypatch):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 20)
    encoded(encoder, store, tmp_path / "embeddings")
    seen = iter([True, False, False, True, True])
    found = encoding.find_embeddings
    monkeypatch.setattr(encoding, "find_embeddings", lambda *of: found(*of) if next(seen) else None)
    monkeypatch.setattr(distributed.time, "sleep", lambda _: None)
    assert len(encoded(encoder, store, tmp_path / "embeddings")) == 20


@pytest.mark.parametrize(
    ("seconds", "end", "marked"),
    [(0, KeyboardInterrupt, 6), (10**9, KeyboardInterrupt, 0), (10**9, Stopped, 6)],
)
def test_an_interrupted_encoding_goes_on_at_its_last_mark_with_the_same_batches(
    tmp_path, monkeypatch, use_threads, seconds, end, marked
):
    use_threads(1)
    monkeypatch.setattr(encoding, "WINDOW", 20)
    monkeypatch.setattr(encoding, "BATCH_TOKENS", {"cpu": 60})
    monkeypatch.setattr(embedding_store, "MARK_SECONDS", seconds)
    store = random_store(tmp_path / "passages", 57)
    undisturbed, killed, resumed = (Counting(tiny_bert().eval(), limit, end) for limit in (99, 6, 99))
    whole = encoded(undisturbed, store, tmp_path / "whole")
    with pytest.raises(end):
        encoded(killed, store, tmp_path / "embeddings")
    assert not (tmp_path / "embeddings" / "manifest.json").exists()
    matrix = encoded(resumed, store, tmp_path / "embeddings")
    assert killed.batches == undisturbed.batches[:6]
    assert resumed.batches == undisturbed.batches[marked:]
    np.testing.assert_array_equal(matrix.rows(0, 57), whole.rows(0, 57))
    np.testing.assert_allclose(matrix.rows(0, 57), one_by_one(tiny_bert().eval(), store), atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == [
        ".encoding.lock",
        "manifest.json",
        "passages.0-of-1.npy",
    ]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_vectors_do_not_depend_on_the_number_of_threads_which_stays(tmp_path, use_threads, precision):
    encoder, store, at_work = tiny_bert().eval(), random_store(tmp_path / "passages", 57), set()
    encoder.register_forward_pre_hook(
        lambda *_: at_work.add((get_ident(), torch.get_num_threads(), torch.is_autocast_enabled("cpu")))
    )

    def vectors(threads):
        use_threads(threads)
        at_work.clear()
        how = {"batch_size": 4, "precision": Precision("cpu", precision)}
        matrix = encoded(encoder, store, tmp_path / f"{threads}", **how)
        assert {(number, cast) for _, number, cast in at_work} == {(1, precision == torch.bfloat16)}
        assert (len(at_work) > 1) == (threads > 1)
        assert get_ident() not in {thread for thread, *_ in at_work}
        with ThreadPoolExecutor(1) as another:
            assert torch.get_num_threads() == another.submit(torch.get_num_threads).result() == threads
        return matrix.rows(0, 57)

    np.testing.assert_array_equal(vectors(3), vectors(1))


def test_what_a_thread_that_encodes_raises_ends_the_encoding(tmp_path, use_threads):
    use_threads(3)
    store, folder = random_store(tmp_path / "passages", 57), tmp_path / "embeddings"
    with pytest.raises(ValueError, match="broken"):
        encoded(Counting(tiny_bert().eval(), 4, ValueError("broken")), store, folder)
    assert not (folder / "manifest.json").exists()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("end", [Stopped, ValueError])
def test_an_encoding_that_is_stopped_does_not_wait_for_the_batches_that_threads_are_at(tmp_path, use_threads, end):
    use_threads(3)
    sequences = Sequences(random_store(tmp_path / "passages", 57))
    written, ended, released, encoder = [], [], Event(), tiny_bert().eval()

    def lasting(tokens):
        if tokens.lengths != sequences.lengths_of(np.arange(4)).tolist():
            released.wait(5)
            ended.append(tokens)
        return encoder(tokens)

    def write(numbers, _):
        written.append(numbers.tolist())
        raise end

    lasting.with_weights = lambda dtype: lasting
    batches = iter(np.arange(56).reshape(-1, 4))
    with pytest.raises(end):
        encode(lasting, sequences, batches, CPU, SETTINGS["precision"], write)
    assert not ended
    released.set()
    assert written == [[0, 1, 2, 3]]
    assert next(batches).tolist() == [16, 17, 18, 19], "three are begun beside the one that is written"
    assert torch.get_num_threads() == 3


def test_a_killed_encoding_goes_on_in_other_batches_too_and_starts_over_with_other_weights(
    tmp_path, monkeypatch, use_threads
):
    use_threads(1)
    monkeypatch.setattr(embedding_store, "MARK_SECONDS", 0)
    store, folder = random_store(tmp_path / "passages", 37), tmp_path / "embeddings"

    def texts_after_a_kill(encoder, weights, **change) -> int:
        with pytest.raises(KeyboardInterrupt):
            encoded(Counting(tiny_bert().eval(), limit=3), store, folder, "w")
        resumed = Counting(encoder)
        matrix = encoded(resumed, store, folder, weights, **change)
        np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(encoder, store), atol=1e-5)
        return sum(len(lengths) for _, lengths in resumed.batches)

    assert texts_after_a_kill(tiny_bert(seed=1).eval(), "other") == 37
    assert texts_after_a_kill(tiny_bert().eval(), "w", batch_size=5) == 37 - 3 * 8


def test_a_mark_is_made_as_time_goes_by_and_not_before(tmp_path, monkeypatch):
    clock = iter([0.0, 29.0, 31.0, 31.0, 60.0, 62.0, 62.0])
    monkeypatch.setattr(embedding_store.time, "monotonic", lambda: next(clock))
    writer = ShardWriter(tmp_path, "passages", 0, 1, np.arange(4), ONE)
    marked = []
    for _ in range(4):
        writer.write(np.ones((1, 2), np.float32))
        path = tmp_path / "passages.0-of-1.progress.json"
        marked.append(json.loads(path.read_text())["done"] if path.exists() else 0)
    assert marked == [0, 2, 2, 4]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 6), st.integers(1, 60))
def test_batches_hold_all_in_order_and_are_as_large_as_both_bounds_allow(lengths, most, tokens):
    batches = list(cut_batches(np.array(lengths, np.int64), most, tokens))
    assert [i for cut in batches for i in range(cut.start, cut.stop)] == list(range(len(lengths)))
    for cut in batches:
        assert 1 <= cut.stop - cut.start <= most
        assert cut.stop - cut.start == 1 or sum(lengths[cut]) <= tokens
        assert cut.stop in (cut.start + most, len(lengths)) or sum(lengths[cut.start : cut.stop + 1]) > tokens


def test_windows_follow_each_other_and_each_goes_from_long_to_short(monkeypatch):
    monkeypatch.setattr(encoding, "WINDOW", 4)
    assert order_by_length(np.array([3, 9, 3, 5, 2, 8, 8])).tolist() == [1, 3, 0, 2, 5, 6, 4]


ORDER = np.array([2, 0, 3, 1])


def begun(folder, source, rows=2, order=ORDER, value=1):
    """A writer of a shard of 4 rows, after the first of them, marked."""
    writer = ShardWriter(folder, "passages", 0, 1, order, source)
    writer.write(np.full((rows, 2), value, np.float32))
    writer.mark()
    return writer


def test_an_unfinished_shard_of_another_source_or_order_is_not_gone_on_with(tmp_path):
    begun(tmp_path, ONE)
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 2
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, OTHER).done == 0
    begun(tmp_path, ONE)
    assert ShardWriter(tmp_path, "passages", 0, 1, np.arange(4), ONE).done == 0


def test_a_shard_counts_as_whole_once_it_is_in_its_place_and_for_its_own_source_only(tmp_path):
    writer = begun(tmp_path, ONE, rows=4)
    assert not shards_are_whole(tmp_path, "passages", ONE, 1)
    writer.close()
    assert shards_are_whole(tmp_path, "passages", ONE, 1)
    assert not shards_are_whole(tmp_path, "passages", OTHER, 1)
    assert not shards_are_whole(tmp_path, "passages", ONE, 2)
    again = ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)
    assert again.done == 4
    assert shards_are_whole(tmp_path, "passages", ONE, 1)  # at no time is it not, as another process may look
    record_embeddings(tmp_path, "passages", ONE, 1)
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "passages.0-of-1.npy"]


@pytest.mark.parametrize("died_after", ["the first rows", "all rows", "its shard"])
def test_a_crash_of_another_source_in_the_same_folder_leaves_none_of_its_vectors(tmp_path, monkeypatch, died_after):
    monkeypatch.setattr(embedding_store, "MARK_SECONDS", 0)
    folder, store = tmp_path / "embeddings", random_store(tmp_path / "passages", 37)
    first, other = tiny_bert().eval(), tiny_bert(seed=1).eval()
    encoded(first, store, folder, "first")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if died_after == "the first rows":
            other = Counting(other, limit=2)
        elif died_after == "all rows":
            patch.setattr(ShardWriter, "close", die)
        else:
            patch.setattr(encoding, "record_embeddings", die)
        with pytest.raises(KeyboardInterrupt):
            encoded(other, store, folder, "other")
    matrix = encoded(first, store, folder, "first")
    np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(first, store), atol=1e-5)


def test_a_crash_leaves_the_manifests_other_matrices_valid(tmp_path):
    encoder, folder = tiny_bert().eval(), tmp_path / "embeddings"
    queries, passages = random_store(tmp_path / "query", 9), random_store(tmp_path / "passages", 20)
    for store, name in ((queries, "query"), (passages, "passages")):
        encoded(encoder, store, folder, name=name)
    with pytest.raises(KeyboardInterrupt):
        encoded(Counting(encoder, limit=1), passages, folder, "other")
    assert list(json.loads((folder / "manifest.json").read_text())["matrices"]) == ["query"]


def test_rows_marked_before_another_source_began_anew_are_forgotten(tmp_path):
    begun(tmp_path, ONE)
    ShardWriter(tmp_path, "passages", 0, 1, ORDER, OTHER)  # and dies before its first mark
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 0


def test_a_mark_does_not_vouch_for_another_sources_finished_shard(tmp_path):
    begun(tmp_path, OTHER, rows=4, value=9).close()
    for first in (0, 2):  # dies between its two marks
        writer = ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)
        assert writer.done == first
        assert not shards_are_whole(tmp_path, "passages", ONE, 1)
        writer.write(np.ones((2, 2), np.float32))
        writer.mark()
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


def test_a_store_of_longer_texts_than_the_encoder_reads_is_not_opened(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "texts").write_text("x")
    with create_token_store(tmp_path / "passages", TokenizerInfo.of(tokenizer), 200, tmp_path / "texts") as writer:
        writer.append(["1"], [[5] * 150])
    config = tiny_bert(positions=128).config
    for max_length in (200, None):
        with pytest.raises(InputError, match="passages may have 200 tokens"):
            open_sequences(tmp_path / "passages", tokenizer, config, max_length)
    assert len(open_sequences(tmp_path / "passages", tokenizer, config, None, chunk_length=100)) == 2
    with pytest.raises(InputError, match="at most 200 tokens a row, and 100 were asked for"):
        open_sequences(tmp_path / "passages", tokenizer, config, 100)


def encode_with_a_plain_roberta(folder: str) -> list[float]:
    encoder, _ = load_encoder("rdot_nll", str(Path(folder, "roberta")))
    store = random_store(Path(folder, f"store-{torch.distributed.get_rank()}"), 37)
    weights = fingerprint_of_weights(Path(folder, "roberta"), encoder)
    matrix = encoded(encoder.eval(), store, Path(folder, "embeddings"), weights)
    return matrix.rows(0, 37).tolist()


def test_processes_that_each_load_a_plain_roberta_encode_with_one_head(tmp_path):
    tiny_bert_tokenizer(tmp_path / "roberta")
    tiny_roberta().model.save_pretrained(tmp_path / "roberta")
    one, other = run_processes(encode_with_a_plain_roberta, 2, str(tmp_path))
    encoder, _ = load_encoder("rdot_nll", str(tmp_path / "roberta"))
    expected = one_by_one(encoder.eval(), random_store(tmp_path / "store", 37))
    np.testing.assert_allclose(one, expected, atol=1e-5)
    assert one == other


def encode_in_folder(folder: str) -> list[int]:
    """Encodes in each process; the last one begins when the main one looks for the others' shards."""
    looked, shards_are_whole = Path(folder, "looked"), encoding.shards_are_whole

    def look(*arguments) -> bool:
        looked.touch()
        return shards_are_whole(*arguments)

    encoding.shards_are_whole = look
    store = random_store(Path(folder, f"store-{distributed.rank()}"), 37)
    encoder = tiny_bert().eval()
    if distributed.rank() == distributed.world_size() - 1:
        encoder.register_forward_pre_hook(lambda *_: distributed.wait_until(looked.exists))
    matrix = encoded(encoder, store, Path(folder, "embeddings"))
    return [len(matrix), matrix.shape[1]]


def is_mapped(rows: np.ndarray) -> bool:
    return isinstance(rows, np.memmap)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_one_matrix_and_wait_in_no_collective(tmp_path, processes):
    assert run_processes(encode_in_folder, processes, str(tmp_path)) == [[37, 16]] * processes
    store = random_store(tmp_path / "store", 37)
    source = EmbeddingSource("w", store.meta.sha256, 24, 0, "float32", "float32", rows=37, dimensions=16)
    matrix = find_embeddings(tmp_path / "embeddings", "passages", source)
    np.testing.assert_allclose(matrix.rows(0, 37), one_by_one(tiny_bert().eval(), store), atol=1e-5)
    np.testing.assert_array_equal(matrix.rows(9, 30), matrix.rows(0, 37)[9:30])
    edges = sorted({matrix.mapped_until(row) for row in range(37)})
    assert len(edges) == processes
    assert edges[-1] == 37
    assert is_mapped(matrix.rows(1, edges[0]))
    assert not is_mapped(matrix.rows(1, edges[0] + 1))


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
    source = EmbeddingSource("w", "t", 24, 0, "float32", "float32", rows=0, dimensions=3)
    ShardWriter(tmp_path, "passages", 0, 1, np.arange(0), source).close()
    assert record_embeddings(tmp_path, "passages", source, 1).rows(0, 0).shape == (0, 3)


def test_earlier_embeddings_make_room_but_the_initial_models_and_public_ones_stay(tmp_path):
    for name in ("embeddings-0", "embeddings-5", "embeddings-10", "embeddings-15", "embeddings-20", "embeddings-old"):
        (tmp_path / name).mkdir()
    remove_earlier_embeddings(tmp_path, 15, tmp_path / "embeddings-5")
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"embeddings-0", "embeddings-5", "embeddings-15", "embeddings-20", "embeddings-old"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_vector_that_is_not_finite_is_an_error(tmp_path, dtype):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 5)
    torch.nn.init.constant_(encoder.model.encoder.layer[1].output.LayerNorm.weight, float("nan"))
    with pytest.raises(InputError, match="of passages is not finite"):
        encoded(encoder, store, tmp_path / "embeddings", dtype=dtype)


def test_float16_vectors_are_the_float32_ones_rounded_and_those_too_large_are_an_error(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 30)
    matrices = {dtype: encoded(encoder, store, tmp_path / dtype, dtype=dtype) for dtype in ("float32", "float16")}
    rounded = matrices["float32"].all().astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(matrices["float16"].all(), rounded)
    assert np.load(tmp_path / "float16" / "passages.0-of-1.npy").dtype == np.float16
    assert [matrices[dtype].mapped_until(3) for dtype in ("float32", "float16")] == [30, 3]

    torch.nn.init.constant_(encoder.model.encoder.layer[1].output.LayerNorm.weight, 1e5)
    assert encoded(encoder, store, tmp_path / "float32", "large").all().max() > 65_504
    with pytest.raises(InputError, match=r"sequence \d+ of passages has a value of .*--embedding_dtype float32"):
        encoded(encoder, store, tmp_path / "float16", "large", dtype="float16")


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 20)
    encoded(encoder, store, tmp_path / "embeddings")
    shard = tmp_path / "embeddings" / "passages.0-of-1.npy"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"passages\.0-of-1\.npy"):
        encoded(encoder, store, tmp_path / "embeddings")


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_shard_with_an_altered_byte_is_named_where_it_would_be_reused(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 20)
    encoded(encoder, store, tmp_path / "embeddings")
    altered(tmp_path / "embeddings" / "passages.0-of-1.npy")
    for reuse in (
        lambda: encoded(encoder, store, tmp_path / "embeddings"),
        lambda: open_embeddings(tmp_path / "embeddings", "passages", store.meta.sha256),
    ):
        with pytest.raises(InputError, match=r"passages\.0-of-1\.npy: is damaged.*encoded again"):
            reuse()


def test_a_manifest_that_is_not_as_it_was_written_is_named(tmp_path):
    encoder, store = tiny_bert().eval(), random_store(tmp_path / "passages", 20)
    encoded(encoder, store, tmp_path / "embeddings")
    path = tmp_path / "embeddings" / "manifest.json"
    whole = json.loads(path.read_text())
    for name, value in (("rows", "20"), ("sha256", "x"), ("sha256", [1]), ("dtype", "int8"), ("reading", None)):
        content = json.loads(json.dumps(whole))
        content["matrices"]["passages"][name] = value
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"manifest\.json: the entry of 'passages'"):
            encoded(encoder, store, tmp_path / "embeddings")
    path.write_text(json.dumps(whole | {"matrices": []}))
    with pytest.raises(InputError, match=r"manifest\.json: matrices is \[\]"):
        encoded(encoder, store, tmp_path / "embeddings")


@pytest.mark.parametrize("done", [-1, 5, "2", None])
def test_a_mark_beyond_the_shard_is_named(tmp_path, done):
    begun(tmp_path, ONE)
    path = tmp_path / "passages.0-of-1.progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"done": done}))
    with pytest.raises(InputError, match=rf"progress\.json: done is {done!r} of 4 rows"):
        ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)


def test_an_unfinished_shard_that_was_cut_off_is_named(tmp_path):
    begun(tmp_path, ONE)
    path = tmp_path / "passages.0-of-1.unfinished.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"unfinished\.npy: cannot be read"):
        ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)


def closed(folder: Path) -> ShardWriter:
    """A writer whose shard of ones stands in its place, not in the manifest yet."""
    writer = begun(folder, ONE, rows=4)
    writer.close()
    return writer


@pytest.mark.parametrize("digest", [None, 7])
def test_a_shard_in_place_without_a_sum_in_its_mark_is_made_again(tmp_path, digest):
    closed(tmp_path)
    path = tmp_path / "passages.0-of-1.progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": digest}))
    assert not shards_are_whole(tmp_path, "passages", ONE, 1)
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 0


def test_a_shard_in_place_that_was_altered_before_the_manifest_named_it_is_told(tmp_path):
    closed(tmp_path)
    altered(tmp_path / "passages.0-of-1.npy")
    with pytest.raises(InputError, match=r"passages\.0-of-1\.npy: is damaged"):
        ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)


def test_an_unfinished_shard_with_fewer_rows_is_named(tmp_path):
    begun(tmp_path, ONE)
    np.save(tmp_path / "passages.0-of-1.unfinished.npy", np.ones((3, 2), np.float32))
    with pytest.raises(InputError, match=r"unfinished\.npy: holds float32 \(3, 2\)"):
        ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)


class Interrupted:
    """A sum after whose update a signal is handled."""

    def __init__(self, digest):
        self._digest = digest

    def copy(self):
        return Interrupted(self._digest.copy())

    def hexdigest(self):
        return self._digest.hexdigest()

    def update(self, data):
        self._digest.update(data)
        raise Stopped("SIGTERM")


def test_a_signal_while_rows_are_written_leaves_a_mark_to_go_on_from(tmp_path):
    writer = begun(tmp_path, ONE)
    writer._written = Interrupted(writer._written)
    with pytest.raises(Stopped):
        writer.write(np.ones((1, 2), np.float32))
    writer.mark()
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 2


def test_an_unfinished_shard_of_a_version_without_sums_is_begun_anew(tmp_path):
    begun(tmp_path, ONE)
    path = tmp_path / "passages.0-of-1.progress.json"
    mark = json.loads(path.read_text())
    del mark["written_sha256"]
    path.write_text(json.dumps(mark))
    assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 0


def test_what_a_kill_left_beside_a_matrix_that_is_entered_goes_when_it_is_reused(tmp_path, monkeypatch):
    store, encoder, folder = random_store(tmp_path / "passages", 8), tiny_bert().eval(), tmp_path / "embeddings"
    with monkeypatch.context() as patch:
        patch.setattr(embedding_store.EmbeddingMatrix, "remove_others", lambda matrix: None)
        encoded(encoder, store, folder)
    assert (folder / "passages.0-of-1.progress.json").exists()
    (folder / "passages.1-of-2.npy").touch()
    encoded(encoder, store, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".encoding.lock",
        "manifest.json",
        "passages.0-of-1.npy",
    ]


@pytest.mark.parametrize("row", range(4))
def test_an_unfinished_shard_whose_marked_rows_were_altered_is_told(tmp_path, row):
    begun(tmp_path, ONE)
    shard = np.lib.format.open_memmap(tmp_path / "passages.0-of-1.unfinished.npy", mode="r+")
    shard[row, 1] += 1
    del shard
    if row in ORDER[:2]:
        with pytest.raises(InputError, match=r"unfinished\.npy: is damaged: its first 2 rows.*encoded again"):
            ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE)
    else:
        assert ShardWriter(tmp_path, "passages", 0, 1, ORDER, ONE).done == 2
