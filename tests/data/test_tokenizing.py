"""The stream of texts: blocks, ids that come again, and what memory does not hold."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizing
from data.judgments import read_judgments
from data.tokenizing import SeenIds, count_lines, load_tokenizer, write_token_store
from model.encoders import MODEL_TYPES
from utils.token_store import TokenStore


def test_the_model_types_are_the_models():
    assert set(tokenizing.MODEL_TYPES) == set(MODEL_TYPES)


@given(st.lists(st.lists(st.integers(0, 40).map(str), min_size=1, max_size=12), max_size=12))
def test_the_first_id_that_comes_again_is_told(blocks):
    seen, known = SeenIds(), set()
    for block in blocks:
        expected = next((i for i, text_id in enumerate(block) if text_id in known or text_id in block[:i]), None)
        assert seen.add(block) == expected
        known.update(block)


def test_runs_of_seen_ids_stay_few():
    seen = SeenIds()
    for start in range(0, 3000, 10):
        assert seen.add([str(number) for number in range(start, start + 10)]) is None
    assert len(seen._runs) <= 12
    assert sum(map(len, seen._runs)) == 3000


@pytest.mark.parametrize(("most_texts", "most_characters"), [(1, 10**6), (3, 10**6), (20_000, 1), (20_000, 25)])
def test_the_size_of_blocks_changes_nothing(tmp_path, tokenizer_folder, monkeypatch, most_texts, most_characters):
    texts = [(i + 1, f"id{i}", "the cat is blue " * (i % 4)) for i in range(10)]
    source = tmp_path / "source"
    source.write_text("x")
    tokenizer = load_tokenizer(tokenizer_folder)

    def write(name: str) -> tuple[dict[str, int], TokenStore]:
        wanted = {"id3", "id9", "stranger"}
        found = write_token_store(tmp_path / name, texts, tokenizer, 12, source, wanted=wanted, label="texts")
        return found, TokenStore(tmp_path / name)

    rows, whole = write("whole")
    monkeypatch.setattr(tokenizing, "BLOCK_TEXTS", most_texts)
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", most_characters)
    same_rows, parts = write("parts")
    assert rows == same_rows == {"id3": 3, "id9": 9}
    assert parts.meta == whole.meta
    assert parts.ids == whole.ids


def test_a_block_ends_with_the_text_that_fills_it(monkeypatch):
    monkeypatch.setattr(tokenizing, "BLOCK_TEXTS", 3)
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 10)
    texts = [(i, str(i), "x" * length) for i, length in enumerate((4, 6, 1, 1, 1, 30, 0))]
    assert [lines for lines, _, _ in tokenizing._blocks(iter(texts))] == [[0, 1], [2, 3, 4], [5], [6]]


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
    return read_judgments(path)


def test_judgments_are_read_with_tabs_blanks_grades_and_repeats(tmp_path):
    expected = {"1": {"a": 3, "b": -1}, "2": {"a": 0}}
    assert judgments_of(tmp_path, "1\t0\ta\t3\n1 0 b -1\r\n2  0  a  0\n1 0 a 3\n") == expected
    assert judgments_of(tmp_path, "1\ta\t3\n1\tb\t-1\n2\ta\t0\n") == expected


def test_ids_may_hold_blanks_where_columns_are_parted_by_tabs(tmp_path):
    assert judgments_of(tmp_path, "query-id\tcorpus-id\tscore\nq 1\ta b\t1\n") == {"q 1": {"a b": 1}}
