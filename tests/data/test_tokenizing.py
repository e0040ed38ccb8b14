"""The stream of texts: blocks, ids that come again, and what memory does not hold."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer

from data import tokenizing
from data.hashed import HashedValues, WantedIds, hashes_of
from data.judgments import iter_judgments
from data.tokenizing import (
    SeenTexts,
    count_lines,
    each_once,
    encode_beginnings,
    find_rows,
    load_tokenizer,
    reads_words,
    write_token_store,
)
from tests.tiny import tiny_bert_tokenizer
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore

PAIR = st.tuples(st.integers(0, 40).map(str), st.sampled_from("xyyyyyyyy"))


@given(st.lists(st.lists(PAIR, min_size=1, max_size=12), max_size=12))
def test_ids_that_come_again_are_told_and_whether_their_text_does(blocks):
    seen, known = SeenTexts(), {}
    for block in blocks:
        expected = []
        for text_id, text in block:
            expected.append((text_id in known, known.setdefault(text_id, text) != text))
        again, differs = seen.add(*map(list, zip(*block, strict=True)))
        assert list(zip(again.tolist(), differs.tolist(), strict=True)) == expected


def test_a_map_of_hashes_holds_few_runs_and_finds_all_that_was_added():
    keys = np.random.default_rng(0).permutation(np.arange(-1500, 1500) * 7)
    held = HashedValues()
    for start in range(0, 3000, 10):
        block = keys[start : start + 10]
        assert not held.find(block)[1].any()
        held.add(block, block + 1)
        assert held.find(block)[1].all()
    values, found = held.find(np.append(keys, 3))
    assert found.tolist() == [True] * 3000 + [False]
    assert (values[:-1] == keys + 1).all()
    assert len(held._runs) <= 12


@pytest.mark.parametrize("most_texts", [1, 2, 20_000])
def test_a_text_that_comes_again_with_its_id_is_taken_once_and_counted(
    tmp_path, tokenizer_folder, monkeypatch, capsys, most_texts
):
    monkeypatch.setattr(tokenizing, "BLOCK_TEXTS", most_texts)
    source = tmp_path / "source"
    source.write_text("x")
    texts = [(i + 1, text_id, f"the cat {text_id}") for i, text_id in enumerate("abacdaee")]
    tokenizer = load_tokenizer(tokenizer_folder)
    keys = hashes_of("edcba", 5)
    wanted = WantedIds([keys])
    write_token_store(tmp_path / "once", texts, tokenizer, 12, source, wanted=wanted, label="texts")
    assert wanted.rows(keys).tolist() == [4, 3, 2, 1, 0]
    store = TokenStore(tmp_path / "once")
    assert store.ids == list("abcde")
    assert list(store.lines) == [0, 1, 3, 4, 6]
    assert "source: 3 texts left out, which come again with the same id (line 3)" in capsys.readouterr().out
    assert list(each_once(texts, source)) == [texts[line] for line in store.lines]
    with pytest.raises(InputError, match=r"source:9: the id 'c' was given before, with another text"):
        list(each_once([*texts, (9, "c", "the dog")], source))


def test_without_texts_left_out_rows_are_lines(tmp_path, tokenizer_folder):
    (tmp_path / "source").write_text("x")
    texts = [(1, "a", "the cat"), (2, "b", "the cat")]
    write_token_store(tmp_path / "store", texts, load_tokenizer(tokenizer_folder), 12, tmp_path / "source", label="")
    assert list(TokenStore(tmp_path / "store").lines) == [0, 1]
    assert not (tmp_path / "store" / "lines.npy").exists()


@pytest.mark.parametrize(("most_texts", "most_characters"), [(1, 10**6), (3, 10**6), (20_000, 1), (20_000, 25)])
def test_the_size_of_blocks_changes_nothing(tmp_path, tokenizer_folder, monkeypatch, most_texts, most_characters):
    texts = [(i + 1, f"id{i}", "the cat is blue " * (i % 4)) for i in range(10)]
    source = tmp_path / "source"
    source.write_text("x")
    tokenizer = load_tokenizer(tokenizer_folder)

    keys = hashes_of(["id3", "id9", "stranger", "not asked for", "id4"], 5)

    def write(name: str) -> tuple[list[int], TokenStore]:
        wanted, again = WantedIds([keys[:3]]), WantedIds([keys[:3]])
        write_token_store(tmp_path / name, texts, tokenizer, 12, source, wanted=wanted, label="texts")
        find_rows(tmp_path / name, again)
        assert wanted.rows(keys).tolist() == again.rows(keys).tolist()
        return wanted.rows(keys).tolist(), TokenStore(tmp_path / name)

    rows, whole = write("whole")
    monkeypatch.setattr(tokenizing, "BLOCK_TEXTS", most_texts)
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", most_characters)
    same_rows, parts = write("parts")
    assert rows == same_rows == [3, 9, -1, -1, -1]
    assert parts.meta == whole.meta
    assert parts.ids == whole.ids


def test_a_block_ends_with_the_text_that_fills_it(monkeypatch):
    monkeypatch.setattr(tokenizing, "BLOCK_TEXTS", 3)
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 10)
    texts = [(i, str(i), "x" * length) for i, length in enumerate((4, 6, 1, 1, 1, 30, 0))]
    assert [lines for lines, _, _ in tokenizing.blocks_of(iter(texts))] == [[0, 1], [2, 3, 4], [5], [6]]


def byte_level_tokenizer() -> Tokenizer:
    """RoBERTa's kind, with some merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=290, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the cat  isn't   in\t the tree", "the the  in  in it's 12 12"] * 9, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


PIECES = [*"aé 1.'_Σ猫\t\n\x1c\xa0\u0301", "  ", "the", "cat", "isn't ", "[SEP]", "</s>", "<mask>", " [MASK]"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), max_size=3), st.integers(4, 9))
def test_a_texts_beginning_gives_the_tokens_of_the_text(tokenizer_folder, kind, texts, max_length):
    backend = load_tokenizer(tokenizer_folder).backend_tokenizer if kind == "bert" else byte_level_tokenizer()
    backend.no_padding()
    backend.enable_truncation(max_length)
    assert reads_words(backend)
    for characters in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizing, "CHARACTERS_A_TOKEN", characters)
            encodings = encode_beginnings(backend, max_length, texts)
        assert [encoding.ids for encoding in encodings] == [backend.encode(text).ids for text in texts]


def test_of_a_long_text_the_beginning_is_read_and_of_one_with_long_words_all(tokenizer_folder):
    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(10)
    read = []

    class Noting:
        def encode_batch_fast(self, texts):
            read.append([len(text) for text in texts])
            return backend.encode_batch_fast(texts)

    texts = ["the cat is blue " * 100, f"{'x' * 200} " * 3, "猫" * 50 + " the" * 50, "the cat"]
    encode_beginnings(Noting(), 10, texts)
    assert read == [[58, 603, 58, 7], []]
    encode_beginnings(Noting(), 10, ["the " + "\t" * 90])
    assert read[2:] == [[3], [94]]


def test_tokenizers_that_look_across_blanks_read_every_text_to_its_end(tokenizer_folder):
    backend = load_tokenizer(tokenizer_folder).backend_tokenizer
    for part, other in (("pre_tokenizer", Metaspace()), ("normalizer", Replace("a", "b"))):
        own = getattr(backend, part)
        setattr(backend, part, other)
        assert not reads_words(backend)
        setattr(backend, part, own)
    assert reads_words(backend)
    backend.add_tokens(["blue sky"])
    assert not reads_words(backend)


@pytest.mark.parametrize(("content", "lines"), [(b"", 0), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2)])
def test_lines_are_counted_plain_and_zipped(tmp_path, content, lines):
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "zipped").write_bytes(gzip.compress(content))
    assert count_lines(tmp_path / "plain") == count_lines(tmp_path / "zipped") == lines
    (tmp_path / "zipped").write_bytes(gzip.compress(content)[:-3])
    assert count_lines(tmp_path / "zipped") is None


def judgments_of(folder: Path, content: str) -> dict[str, dict[str, int]]:
    path = folder / "qrels"
    path.write_text(content)
    judged: dict[str, dict[str, int]] = {}
    for _, query, passage, grade in iter_judgments(path):
        judged.setdefault(query, {})[passage] = grade
    return judged


def test_judgments_are_read_with_tabs_blanks_grades_and_repeats(tmp_path):
    expected = {"1": {"a": 3, "b": -1}, "2": {"a": 0}}
    assert judgments_of(tmp_path, "1\t0\ta\t3\n1 0 b -1\r\n2  0  a  0\n1 0 a 3\n") == expected
    assert judgments_of(tmp_path, "1\ta\t3\n1\tb\t-1\n2\ta\t0\n") == expected


def test_ids_may_hold_blanks_where_columns_are_parted_by_tabs(tmp_path):
    assert judgments_of(tmp_path, "query-id\tcorpus-id\tscore\nq 1\ta b\t1\n") == {"q 1": {"a b": 1}}


def test_texts_without_a_token_are_kept_and_counted(tmp_path, capsys):
    tokenizer = load_tokenizer(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    source = tmp_path / "texts.tsv"
    source.write_text("")
    texts = [(1, "a", "the cat"), (2, "b", ""), (3, "c", "  ")]
    write_token_store(tmp_path / "store", texts, tokenizer, 12, source, label="passages")
    assert TokenStore(tmp_path / "store").ids == ["a", "b", "c"]
    assert "texts.tsv: 2 of the passages hold no text" in capsys.readouterr().out


@pytest.mark.parametrize("by_beginnings", [True, False])
def test_texts_that_are_cut_are_counted_one_that_just_fits_is_not(tmp_path, monkeypatch, capsys, by_beginnings):
    monkeypatch.setattr(tokenizing, "CHARACTERS_A_TOKEN", 3)  # a beginning of 12 characters: three of these words
    monkeypatch.setattr(tokenizing, "reads_words", lambda backend: by_beginnings)
    tokenizer = load_tokenizer(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    source = tmp_path / "texts.tsv"
    source.write_text("")
    texts = [
        "the cat",
        "the cat ",
        "the cat the",
        "the cat in the cat",
        "the cat" + " " * 30,
        "the cat" + " " * 30 + "in",
    ]
    rows = [(i + 1, str(i), text) for i, text in enumerate(texts)]
    write_token_store(tmp_path / "s", rows, tokenizer, 4, source, label="queries", flag="--max_query_length")
    assert [len(row) for row in map(TokenStore(tmp_path / "s").__getitem__, range(6))] == [4] * 6
    said = capsys.readouterr().out
    assert "texts.tsv: 3 of the queries (50.0%) are longer than 4 tokens, special ones included" in said
    assert "cut there (--max_query_length)" in said
    write_token_store(tmp_path / "t", rows[:2], tokenizer, 4, source, label="queries")
    assert "longer" not in capsys.readouterr().out
