"""A BEIR folder becomes stores and judgments by row, ids and all."""

import json
import sys

import pytest
from transformers import AutoTokenizer

from data import beir_data
from data.source_texts import split_line
from model.reading import Reading, published_reading
from model.saving import write_sentence_files
from tests.data.conftest import BEIR_FILES, nothing_looks_complete
from tests.tiny_models import tiny_config
from utils.runtime.errors import InputError
from utils.stores.qrels import read_qrels
from utils.stores.token_store import TokenStore


@pytest.mark.parametrize("zipped", [False, True])
def test_a_beir_folder_comes_back_with_its_string_ids(preprocess_beir, tokenizer_folder, zipped):
    out = preprocess_beir(zipped=zipped)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    passages, queries = TokenStore(out / "passages"), TokenStore(out / "test-query")
    assert passages.ids == ["a/1", "b", "grün"]
    assert queries.ids == ["q1"]
    for row, text in enumerate(("The Cat is blue", "sky of the tree", "")):
        assert passages[row].tolist() == tokenizer(text)["input_ids"]
    qrels = read_qrels(out / "test-qrel.tsv", len(queries), len(passages))
    assert qrels.passage_rows.tolist() == [0, 1]
    assert qrels.relevance.tolist() == [2, 0]


def test_a_missing_title_and_an_empty_one_add_no_blank(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        '{"_id": "a", "title": "", "text": "x"}\n{"_id": 5, "text": "y"}\n{"_id": "c", "title": "t", "text": "z"}'
    )
    assert list(beir_data.read_jsonl(path, str)) == [(1, "a", "x"), (2, "5", "y"), (3, "c", "t z")]


def test_blanks_around_ids_say_nothing_wherever_they_stand(preprocess_beir, tmp_path):
    plain = preprocess_beir(out=tmp_path / "plain")
    around = {
        "corpus.jsonl": BEIR_FILES["corpus.jsonl"].replace('"a/1"', '" a/1\\u00a0"').replace('"b"', '"b "'),
        "queries.jsonl": BEIR_FILES["queries.jsonl"].replace('"q1"', '"q1 "'),
        "qrels/test.tsv": BEIR_FILES["qrels/test.tsv"].replace("a/1", "a/1 ").replace("q1", " q1"),
    }
    for changes in (around, {name: around[name] for name in ("corpus.jsonl", "queries.jsonl")}):
        out = preprocess_beir(changes, out=tmp_path / str(len(changes)))
        for name in ("passages/ids.txt", "test-query/ids.txt", "test-qrel.tsv"):
            assert (out / name).read_bytes() == (plain / name).read_bytes()
        first = (tmp_path / "beir" / "corpus.jsonl").read_text().splitlines()[0]
        assert split_line(first, "corpus.jsonl") == ("a/1", "The Cat", "is blue")


def test_condenser_models_get_lowercased_title_and_text(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "A", "title": "Big", "text": "TEXT"}')
    assert list(beir_data.read_jsonl(path, str.lower)) == [(1, "A", "big text")]


def test_another_split_is_written_under_its_name(preprocess_beir):
    out = preprocess_beir({"qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\tb\t1\n"}, split="dev")
    assert TokenStore(out / "dev-query").ids == ["q2"]
    assert (out / "dev-qrel.tsv").read_text() == "0\t1\t1\n"
    assert not (out / "test-query").exists()


@pytest.mark.parametrize(
    ("folder", "flags", "query_length", "passage_length"),
    [
        ("beir/nfcorpus", {}, 64, 128),
        ("beir/arguana/", {}, 128, 128),
        ("beir/scifact", {}, 64, 256),
        ("beir/TREC-NEWS", {}, 64, 256),
        ("beir/robust04", {"max_seq_length": 99}, 64, 99),
        ("beir/arguana", {"max_query_length": 17}, 17, 128),
        ("somewhere", {"dataset": "scifact"}, 64, 256),
        ("beir/scifact", {"dataset": "mine"}, 64, 128),
    ],
)
def test_lengths_go_by_the_data_set_unless_given(folder, flags, query_length, passage_length):
    args = beir_data.Arguments(data_dir=folder, out_data_dir="out", model_name_or_path="model", **flags)
    reading = published_reading("rdot_nll")
    assert beir_data.choose_lengths(args, reading, None) == (passage_length, query_length)
    assert beir_data.choose_lengths(args, reading, 64)[1] == (flags.get("max_query_length") or 64)


@pytest.mark.parametrize(
    ("texts", "tokenizer", "passage_length", "query_length"),
    [
        ({"max_seq_length": 100}, {"model_max_length": 512}, 100, 100),
        ({"max_seq_length": 100, "query_length": 20}, {}, 100, 20),
        ({"max_seq_length": 100, "document_length": 30}, {}, 30, 100),
        ({}, {"model_max_length": 80}, 80, 80),
        ({}, {"model_max_length": 1e30}, 300, 300),
        ({"max_seq_length": 8192}, {}, 300, 300),
    ],
)
def test_lengths_are_the_checkpoints_own_where_its_files_say_how_it_is_read(
    tmp_path, texts, tokenizer, passage_length, query_length
):
    write_sentence_files(tmp_path, Reading("mean"), tiny_config("bert"), [], 16, 16)
    for name, content in (("sentence_bert_config.json", texts), ("tokenizer_config.json", tokenizer)):
        (tmp_path / name).write_text(json.dumps(content))
    args = {"data_dir": "beir/scifact", "out_data_dir": "out", "model_name_or_path": str(tmp_path)}
    found = beir_data.choose_lengths(beir_data.Arguments(**args), Reading("mean"), 300)
    assert found == (passage_length, query_length)
    given = beir_data.Arguments(**args, max_query_length=7)
    assert beir_data.choose_lengths(given, Reading("mean"), 300) == (passage_length, 7)
    assert beir_data.choose_lengths(beir_data.Arguments(**args), published_reading("rdot_nll"), 300) == (256, 64)


@pytest.mark.parametrize(
    ("file", "content", "place", "found"),
    [
        ("corpus.jsonl", "", "corpus.jsonl", "empty"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b", \n', "corpus.jsonl:2", "not valid JSON"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n["b", "x"]\n', "corpus.jsonl:2", "JSON object"),
        ("corpus.jsonl", '{"text": "x"}\n', "corpus.jsonl:1", "_id, found none"),
        ("corpus.jsonl", '{"_id": "a", "title": "x"}\n', "corpus.jsonl:1", "text, found none"),
        ("corpus.jsonl", '{"_id": "a", "text": null}\n', "corpus.jsonl:1", "text, found None"),
        ("corpus.jsonl", '{"_id": "a", "text": "x", "title": 3}\n', "corpus.jsonl:1", "title, found 3"),
        ("corpus.jsonl", '{"_id": "a\\nb", "text": "x"}\n', "corpus.jsonl:1", "line break"),
        ("corpus.jsonl", '{"_id": "", "text": "x"}\n', "corpus.jsonl:1", "empty"),
        ("corpus.jsonl", '{"_id": " ", "text": "x"}\n', "corpus.jsonl:1", "empty"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a ", "text": "y"}', "corpus.jsonl:2", "'a' was given"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}', "corpus.jsonl:2", "'a' was given"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}\n{"_id": "q1", "text": ""}', "queries.jsonl:2", "'q1' was"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n\n{"_id": "b", "text": "y"}', "corpus.jsonl:2", "is blank"),
        ("queries.jsonl", b'{"_id": "q1", "text": "\xe9"}\n', "queries.jsonl:1", "UTF-8"),
        ("queries.jsonl", '{"_id": "q1"}\n', "queries.jsonl:1", "text"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\ta/1\n", "qrels/test.tsv:2", "expected 3 columns"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\ta/1\t0.5\n", "qrels/test.tsv:2", "is 0.5"),
    ],
)
def test_bad_input_is_named_by_file_and_line_and_leaves_nothing(
    preprocess_beir, tmp_path, file, content, place, found
):
    with pytest.raises(InputError) as error:
        preprocess_beir({file: content})
    assert str(error.value).startswith(f"{tmp_path / 'beir' / place}: ")
    assert found in str(error.value)
    assert nothing_looks_complete(tmp_path / "out")


def test_a_split_that_is_not_there_is_named(preprocess_beir, tmp_path):
    with pytest.raises(InputError, match=r"qrels: holds none of train\.tsv"):
        preprocess_beir(split="train")


def test_both_spellings_of_flags_are_taken(preprocess_beir, monkeypatch, tmp_path):
    preprocess_beir()
    before = (tmp_path / "out" / "passages" / "tokens.npy").read_bytes()
    monkeypatch.setattr(sys, "argv", [part.replace("_", "-") if part[:2] == "--" else part for part in sys.argv])
    beir_data.main()
    assert (tmp_path / "out" / "passages" / "tokens.npy").read_bytes() == before
    assert set(BEIR_FILES) == {"corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}


def test_blank_lines_at_the_end_and_lines_given_twice_change_nothing(preprocess_beir, tmp_path, capsys):
    plain = preprocess_beir(out=tmp_path / "plain")
    changes = {name: content + content.split("\n")[0] + "\n\n \n" for name, content in BEIR_FILES.items()}
    changes["qrels/test.tsv"] = BEIR_FILES["qrels/test.tsv"] + "\n"
    out = preprocess_beir(changes, out=tmp_path / "changed")
    for name in ("passages/tokens.npy", "passages/ids.txt", "test-query/ids.txt", "test-qrel.tsv"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()
    assert list(TokenStore(out / "passages").lines) == [0, 1, 2]
    assert "corpus.jsonl: 1 texts left out" in capsys.readouterr().out
