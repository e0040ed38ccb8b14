"""Texts read back by their rows from the files that token stores were made of."""

import gzip

import numpy as np
import pytest

from data import source_texts
from data.layouts.msmarco import read_tsv
from data.source_texts import SourceLines, Texts, line_starts, split_line
from data.tokenizing import load_tokenizer, write_token_store
from tests.tiny import tiny_bert_tokenizer
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("end", ["\n", ""])
def test_lines_are_read_by_number(tmp_path, zipped, end, monkeypatch):
    monkeypatch.setattr(source_texts, "READ_BYTES", 7)
    lines = ["\ufeffa", "b\u2028c\x0bd", "", "grün " * 9, "last"]
    content = ("\r\n".join(lines[:3]) + "\n" + "\n".join(lines[3:]) + end).encode()
    path = tmp_path / "lines.tsv"
    path.write_bytes(gzip.compress(content) if zipped else content)
    lines[0] = "a"
    source = SourceLines(path, 5)
    assert source.read([4, 0, 3, 1, 2]) == [lines[i] for i in (4, 0, 3, 1, 2)]
    if not zipped:
        assert line_starts(path).dtype == np.int64
        with pytest.raises(InputError, match=r"lines\.tsv: has 5 lines, and its token store is of 6"):
            SourceLines(path, 6)


@pytest.mark.parametrize("zipped", [False, True])
def test_each_row_is_shown_with_its_own_line_where_lines_were_left_out(tmp_path, zipped):
    """Lines that come again, further columns and blank last lines have no row."""
    lines = ["a\tthe cat", "b\tthe dog\tleft out", "a\tthe cat", "c\tthe sky", "b\tthe dog", "", " "]
    path = tmp_path / "collection.tsv"
    path.write_bytes(gzip.compress("\n".join(lines).encode()) if zipped else "\n".join(lines).encode())
    texts, tokenizer = read_tsv(path, str), load_tokenizer(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    write_token_store(tmp_path / "passages", texts, tokenizer, 9, path, label="passages")
    shown = Texts(TokenStore(tmp_path / "passages"), tmp_path).read([2, 0, 1])
    assert shown == [("c", "", "the sky"), ("a", "", "the cat"), ("b", "", "the dog")]


def test_of_a_document_all_columns_are_shown():
    document = split_line("D1\turl\ttitle\tbody", "msmarco-docs.tsv.gz")
    assert document == ("D1", "url title", "body")
    assert document.whole == "url title body"


@pytest.mark.parametrize("zipped", [False, True])
def test_texts_of_a_store_that_holds_some_of_the_lines_are_found_by_their_ids(tmp_path, zipped):
    """As queries are stored: those that nothing is judged relevant to are left out."""
    lines = ["a\tone", "b\ttwo", "a\tone", "c\tthree ", "d\tfour", "e\tfive"]
    path, made = tmp_path / "queries.tsv", tmp_path / "train-query"
    path.write_bytes(gzip.compress("\n".join(lines).encode()) if zipped else "\n".join(lines).encode())
    kept = [(0, "a", "one"), (0, "c", "three"), (0, "d", "four")]
    tokenizer = load_tokenizer(tiny_bert_tokenizer(tmp_path / "tokenizer"))
    write_token_store(made, kept, tokenizer, 9, path, label="queries")
    (tmp_path / "unpacked").mkdir()
    texts = Texts(TokenStore(made), tmp_path, selected=True, unpack_in=tmp_path / "unpacked")
    assert texts.read([2, 0, 1]) == [("d", "", "four"), ("a", "", "one"), ("c", "", "three")]
    assert len(list((tmp_path / "unpacked").iterdir())) == zipped
    changed = "\n".join(lines).replace("d\tf", "x\tf").encode()
    path.write_bytes(gzip.compress(changed) if zipped else changed)
    store = TokenStore(made)
    with pytest.raises(InputError, match="has no 'd' after the lines of the rows before it"):
        source_texts.selected_lines(store, path)
