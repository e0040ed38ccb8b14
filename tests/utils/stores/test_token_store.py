"""A token store gives back what was written, or says what is wrong with it."""

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import random_store
from utils.runtime.errors import InputError
from utils.stores.token_store import Preparation, TokenizerInfo, TokenStore, create_token_store

SMALL, LARGE = 65_536, 65_537


def write_store(folder: Path, blocks, vocabulary: int = SMALL, max_length: int = 8, tokenizer=None) -> TokenStore:
    source = folder.parent / "source.tsv"
    source.write_text("source")
    tokenizer = tokenizer or TokenizerInfo("tokenizer", "f" * 64, vocabulary, 0)
    with create_token_store(folder, tokenizer, max_length, source) as writer:
        for ids, rows in blocks:
            writer.append(ids, rows)
    return TokenStore(folder)


@st.composite
def stores(draw):
    """(vocabulary, blocks of ids and rows): ids of any characters but line breaks, rows of 0 … 8 tokens."""
    vocabulary = draw(st.sampled_from([100, SMALL, LARGE, 250_000]))
    row = st.lists(st.integers(0, vocabulary - 1), max_size=8)
    text_id = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1, max_size=5)
    blocks = draw(st.lists(st.lists(st.tuples(text_id, row), max_size=5), max_size=4))
    return vocabulary, [([text_id for text_id, _ in block], [row for _, row in block]) for block in blocks]


@settings(deadline=None, max_examples=60)
@given(stores())
def test_a_store_gives_back_what_was_written(drawn):
    vocabulary, blocks = drawn
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder, "store"), blocks, vocabulary)
        assert [store[row].tolist() for row in range(len(store))] == [row for _, rows in blocks for row in rows]
        assert store.ids == [text_id for ids, _ in blocks for text_id in ids]
        assert store.lengths.tolist() == [len(row) for _, rows in blocks for row in rows]
        assert store.tokens.dtype == (np.uint16 if vocabulary <= SMALL else np.int32)
        assert store.offsets.dtype == np.int64
        assert store.meta.tokens == len(store.tokens)


@settings(deadline=None, max_examples=30)
@given(stores(), st.integers(1, 12))
def test_rows_have_equal_hashes_just_when_their_tokens_are_equal(drawn, block_tokens):
    vocabulary, blocks = drawn
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder, "store"), blocks, vocabulary)
        hashes = store.row_hashes(block_tokens).tolist()
        rows = [tuple(store[row].tolist()) for row in range(len(store))]
        assert len(set(hashes)) == len(set(rows)) == len(set(zip(hashes, rows, strict=True)))


def test_arrays_and_generators_of_rows_are_written_alike(tmp_path):
    rows = [[1, 2, 3], [], [4]]
    listed = write_store(tmp_path / "listed", [(["a", "b", "c"], rows)])
    streamed = write_store(tmp_path / "arrays", [(["a", "b", "c"], (np.array(row, dtype=np.int64) for row in rows))])
    assert listed.meta == streamed.meta


def test_the_tokens_are_read_through_a_memory_map(tmp_path):
    assert isinstance(write_store(tmp_path / "store", [(["a"], [[1, 2]])]).tokens, np.memmap)


def test_meta_names_source_tokenizer_and_counts(tmp_path):
    store = write_store(tmp_path / "store", [(["a", "b"], [[1, 2], [3]])], max_length=5)
    content = json.loads((tmp_path / "store" / "meta.json").read_text())
    assert {name: content[name] for name in content if "sha256" not in name and "fingerprint" not in name} == {
        "format_version": 2,
        "tokenizer": "tokenizer",
        "vocabulary_size": SMALL,
        "pad_token_id": 0,
        "max_length": 5,
        "rows": 2,
        "tokens": 3,
        "source_file": "source.tsv",
        "source_size": 6,
        "prompt": "",
        "lowercased": False,
    }
    other = write_store(tmp_path / "other", [(["a", "b"], [[1], [2, 3]])], max_length=5)
    assert other.meta.sha256 != store.meta.sha256, "the same tokens cut in other places are another store"


@pytest.mark.parametrize(
    ("ids", "rows", "error"),
    [
        (["a"], [[1], [2]], ValueError),
        (["a"], [list(range(9))], ValueError),
        (["a"], [[-1]], OverflowError),
        (["a"], [[SMALL]], OverflowError),
        (["a\nb"], [[1]], InputError),
        (["a\rb"], [[1]], InputError),
    ],
)
def test_rows_that_do_not_fit_leave_no_store(tmp_path, ids, rows, error):
    with pytest.raises(error):
        write_store(tmp_path / "store", [(["first"], [[1]]), (ids, rows)])
    assert [path.name for path in tmp_path.iterdir()] == ["source.tsv"]


def test_a_failed_write_keeps_the_store_that_was_there(tmp_path):
    write_store(tmp_path / "store", [(["a"], [[1, 2]])])
    with pytest.raises(ValueError, match="1 ids for 0 rows"):
        write_store(tmp_path / "store", [(["b"], [])])
    assert TokenStore(tmp_path / "store").ids == ["a"]


def change_meta(**changes):
    def damage(folder: Path) -> None:
        path = folder / "meta.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return damage


def cut_short(name: str, size: int = -2):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def save(name: str, array: np.ndarray):
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short("tokens.npy"), r"tokens\.npy: cannot be read"),
        (cut_short("tokens.npy", 3), r"tokens\.npy: cannot be read"),
        (cut_short("offsets.npy"), r"offsets\.npy: cannot be read"),
        (cut_short("meta.json"), r"meta\.json: is not valid JSON"),
        (lambda folder: (folder / "tokens.npy").unlink(), r"tokens\.npy: cannot be read"),
        (lambda folder: (folder / "offsets.npy").unlink(), r"offsets\.npy: cannot be read"),
        (lambda folder: (folder / "meta.json").unlink(), r"meta\.json: no such file"),
        (change_meta(format_version=1), "format version 1, this code reads 2"),
        (change_meta(max_length=1), "offsets do not fit the tokens"),
        (change_meta(ids_sha256=7), "ids_sha256 is 7"),
        (change_meta(source_file="../secret"), r"source_file is '\.\./secret', not the name of a file"),
        (change_meta(rows=2), r"offsets\.npy: holds <i8 of shape \(4,\) where 3 of <i8"),
        (change_meta(tokens=7), r"tokens\.npy: holds <u2 of shape \(6,\) where 7 of <u2"),
        (change_meta(rows="3"), "rows is '3'"),
        (change_meta(max_length=-1), "max_length is -1"),
        (change_meta(tokenizer_fingerprint=None), "tokenizer_fingerprint is None"),
        (save("tokens.npy", np.zeros(6, dtype=np.float32)), r"tokens\.npy: holds <f4"),
        (save("tokens.npy", np.zeros(6, dtype=">u2")), r"tokens\.npy: holds >u2 .* where 6 of <u2"),
        (save("tokens.npy", np.zeros(6, dtype=np.int16)), r"tokens\.npy: holds <i2 .* where 6 of <u2"),
        (save("offsets.npy", np.zeros(4, dtype=np.int32)), r"offsets\.npy: holds <i4 .* where 4 of <i8"),
        (save("tokens.npy", np.zeros((2, 3), dtype=np.uint16)), r"tokens\.npy: holds <u2 of shape \(2, 3\)"),
        (save("tokens.npy", np.array([{}] * 6, dtype=object)), r"tokens\.npy: cannot be read"),
        (save("offsets.npy", np.array([0, 4, 2, 6])), "offsets do not fit the tokens"),
        (save("offsets.npy", np.array([0, 2, 4, 5])), "offsets do not fit the tokens"),
        (save("offsets.npy", np.array([1, 2, 4, 6])), "offsets do not fit the tokens"),
    ],
)
def test_a_damaged_store_is_told_when_it_is_opened(tmp_path, damage, message):
    write_store(tmp_path / "store", [(["a", "b", "c"], [[1, 2], [3, 4], [5, 6]])])
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=message):
        TokenStore(tmp_path / "store")


@pytest.mark.parametrize("content", ["a\nb\n", "a\nb\nc", "a\nb\nc\nd\n", "a\nb\nd\n", "\udcff\nb\nc\n", None])
def test_ids_that_are_not_those_that_were_written_are_told(tmp_path, content):
    store = write_store(tmp_path / "store", [(["a", "b", "c"], [[1], [2], [3]])])
    path = tmp_path / "store" / "ids.txt"
    path.unlink()
    if content:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"ids\.txt: (is damaged|cannot be read).*and tokenize again"):
        _ = store.ids


def test_a_folder_that_is_not_there_is_told_with_the_cure(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such token store; make it with data/msmarco_data\.py"):
        TokenStore(tmp_path / "nowhere")


def test_another_tokenizer_or_length_than_the_stores_is_told(tmp_path):
    cased, uncased = (
        AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / str(lowercase), lowercase=lowercase))
        for lowercase in (False, True)
    )
    store = write_store(tmp_path / "store", [(["a"], [[1]])], max_length=5, tokenizer=TokenizerInfo.of(cased))
    assert store.expect(cased, 5) is store
    with pytest.raises(InputError, match=r"store: was made with another tokenizer .* tokenize the collection again"):
        store.expect(uncased, 5)
    with pytest.raises(InputError, match=r"store: was made with at most 5 tokens a row, and 6 were asked for"):
        store.expect(cased, 6)


@pytest.mark.parametrize("cased", [True, False])
@pytest.mark.parametrize("was", [True, False, None])
@pytest.mark.parametrize("lowercased", [True, False])
def test_texts_lowercased_otherwise_are_told_where_the_tokenizer_tells_cases_apart(tmp_path, cased, was, lowercased):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "tokenizer", lowercase=not cased))
    (tmp_path / "source").touch()
    made = Preparation(lowercased=bool(was))
    with create_token_store(tmp_path / "store", TokenizerInfo.of(tokenizer), 5, tmp_path / "source", made):
        pass
    if was is None:  # as of a version that did not note it
        meta = json.loads((tmp_path / "store/meta.json").read_text())
        del meta["lowercased"]
        (tmp_path / "store/meta.json").write_text(json.dumps(meta))
    refused = cased and was not in (None, lowercased)
    with pytest.raises(InputError, match="lowercased; tokenize the collection") if refused else nullcontext():
        TokenStore(tmp_path / "store").expect(tokenizer, 5, Preparation(lowercased=lowercased))


def test_the_fingerprint_does_not_hang_on_the_name_nor_on_truncation_and_padding(tmp_path):
    first = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "first"))
    second = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "second"))
    second("some text", truncation=True, max_length=5, padding="max_length")
    second.backend_tokenizer.enable_truncation(7)
    assert TokenizerInfo.of(first).fingerprint == TokenizerInfo.of(second).fingerprint


def test_a_tokenizer_without_padding_token_is_told(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        TokenizerInfo.of(tokenizer)


def test_altered_tokens_are_noticed(tmp_path):
    store = random_store(tmp_path / "store", 9)
    store.check_content()
    for name in ("tokens.npy", "offsets.npy"):
        path = tmp_path / "store" / name
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"they were altered|the store is damaged"):
            TokenStore(tmp_path / "store").check_content()
        content[-8] ^= 1
        path.write_bytes(content)
    TokenStore(tmp_path / "store").check_content()
