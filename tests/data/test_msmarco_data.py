"""MS MARCO's raw files become stores and judgments by row, or a clear message and nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data import msmarco_data
from data.layouts.msmarco import read_documents
from tests.data.conftest import DOCUMENT_FILES, PASSAGE_FILES, nothing_looks_complete, write_files
from utils.runtime.errors import InputError
from utils.stores.qrels import read_missing_ids
from utils.stores.token_store import TokenStore

ROOT = Path(__file__).resolve().parents[2]


def rows(out: Path, store: str) -> dict[str, list[int]]:
    opened = TokenStore(out / store)
    return {text_id: opened[row].tolist() for row, text_id in enumerate(opened.ids)}


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in (".lock", "sources.json")
    }


def test_rows_are_the_texts_tokenized_one_by_one_in_the_files_order(preprocess_passages, tokenizer_folder):
    out = preprocess_passages(max_seq_length=7, max_query_length=5)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    for store, length, texts in (
        ("passages", 7, ("the Cat is blue", "the sky of the tree", "", "dog: what")),
        ("train-query", 5, ("what is blue", "How blue is the tree")),
        ("dev-query", 5, ("dog of the sky",)),
    ):
        expected = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
        assert list(rows(out, store).values()) == expected
    assert list(rows(out, "passages")) == ["0", "1", "2", "7"]
    assert max(map(len, rows(out, "passages").values())) == 7, "the test must see a row that was cut"


def test_judgments_are_by_row_with_their_grades(preprocess_passages):
    out = preprocess_passages()
    assert (out / "train-qrel.tsv").read_text() == "0\t0\t1\n1\t1\t0\n1\t2\t1\n1\t3\t2\n"
    assert (out / "dev-qrel.tsv").read_text() == "0\t3\t1\n"


def test_queries_without_a_relevant_judgment_are_left_out_and_counted(preprocess_passages, capsys):
    changes = {"qrels.train.tsv": "10\t0\t0\t1\n12\t0\t7\t0\n12\t0\t1\t-1\n"}
    assert list(rows(preprocess_passages(changes), "train-query")) == ["10"]
    assert "queries.train.tsv: 1 of 3 queries have a relevant passage in qrels.train.tsv" in capsys.readouterr().out


def test_gzipped_files_give_the_same_stores(preprocess_passages, tmp_path):
    plain = contents(preprocess_passages(out=tmp_path / "plain"))
    zipped = contents(preprocess_passages(zipped=True, out=tmp_path / "zipped"))
    assert plain.keys() == zipped.keys()
    for name in plain.keys() - {f"{store}/meta.json" for store in ("passages", "train-query", "dev-query")}:
        assert plain[name] == zipped[name], name


def test_three_columns_of_judgments_with_and_without_header_equal_four(preprocess_passages, tmp_path):
    four = preprocess_passages(out=tmp_path / "four")
    lines = ["10\t0\t1\n", "12\t7\t2\n", "12\t1\t0\n", "12\t2\t1\n"]
    for name, header in (("bare", ""), ("named", "query-id\tcorpus-id\tscore\n")):
        three = preprocess_passages({"qrels.train.tsv": header + "".join(lines)}, out=tmp_path / name)
        assert contents(three) == contents(four)


def test_the_large_dev_set_is_read_where_there_is_no_small_one(preprocess_passages):
    out = preprocess_passages(
        {
            "queries.dev.tsv": PASSAGE_FILES["queries.dev.small.tsv"],
            "qrels.dev.tsv": PASSAGE_FILES["qrels.dev.small.tsv"],
            "queries.dev.small.tsv": None,
            "qrels.dev.small.tsv": None,
        }
    )
    assert list(rows(out, "dev-query")) == ["20"]


@pytest.mark.parametrize(
    ("model_type", "word"), [("rdot_nll_condenser", "cat"), ("rdot_nll", "Cat"), ("rdot_nll_multi_chunk", "Cat")]
)
def test_only_condenser_models_get_lowercased_text(preprocess_passages, tokenizer_folder, model_type, word):
    out = preprocess_passages(model_type=model_type)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert tokenizer.convert_ids_to_tokens(rows(out, "passages")["0"])[2] == word
    first = "how" if word == "cat" else "H"
    assert tokenizer.convert_ids_to_tokens(rows(out, "train-query")["12"])[1] == first


@pytest.mark.parametrize(("lowercase", "query"), [(0, "Sky of "), (1, "sky of ")])
def test_prompts_stand_before_every_text_and_count_in_its_length(
    preprocess_passages, tokenizer_folder, lowercase, query
):
    flags = {"query_prompt": "Sky of ", "passage_prompt": r"dog:\n", "lowercase": lowercase}
    out = preprocess_passages(max_seq_length=8, max_query_length=7, **flags)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    cat, how = ("cat", "how") if lowercase else ("Cat", "How")
    for store, length, texts in (
        ("passages", 8, (f"dog:\nthe {cat} is blue", "dog:\nthe sky of the tree", "dog:\n", "dog:\ndog: what")),
        ("train-query", 7, (f"{query}what is blue", f"{query}{how} blue is the tree")),
        ("dev-query", 7, (f"{query}dog of the sky",)),
    ):
        expected = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
        assert list(rows(out, store).values()) == expected
        assert TokenStore(out / store).meta.prompt == ("dog:\n" if store == "passages" else "Sky of ")


def test_only_texts_without_a_word_beside_the_prompt_are_said_to_hold_none(preprocess_passages, capsys):
    preprocess_passages(passage_prompt="THE SKY: ", lowercase=1)
    assert "1 of the passages hold no text" in capsys.readouterr().out


def test_an_empty_passage_is_kept_with_its_special_tokens_only(preprocess_passages, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert rows(preprocess_passages(), "passages")["2"] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


@pytest.mark.parametrize("model_type", ["rdot_nll", "rdot_nll_condenser"])
def test_a_document_is_url_title_and_body_as_the_public_models_read_it(
    run_script, tmp_path, tokenizer_folder, model_type
):
    documents = "D1\thttp://A.b/c \tThe Tree\u00a0 \tsky of the Tree \r\nD22\thttp://d.e\t\tdog\n"
    raw = write_files(tmp_path / "raw", DOCUMENT_FILES | {"msmarco-docs.tsv": documents})
    out = run_script(msmarco_data, raw, data_type=0, model_type=model_type)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    text = "http://A.b/c<sep>The Tree<sep>sky of the Tree"
    text = text.lower() if model_type == "rdot_nll_condenser" else text
    assert rows(out, "passages")["D1"] == tokenizer(text)["input_ids"]
    assert rows(out, "passages")["D22"] == tokenizer("http://d.e<sep><sep>dog")["input_ids"]
    assert (out / "dev-qrel.tsv").read_text() == "0\t1\t1\n"


def test_a_document_is_cut_at_so_many_characters(tmp_path):
    path = tmp_path / "docs.tsv"
    path.write_text("D1\turl  \ttitle\t body and more \n")
    for most in (3, 8, 17, 1000):
        assert list(read_documents(path, "<sep>", most)) == [(1, "D1", "url<sep>title<sep> body and more"[:most])]


def test_the_store_remembers_source_tokenizer_and_length(preprocess_passages, tokenizer_folder):
    store = TokenStore(preprocess_passages(max_seq_length=9) / "passages")
    assert store.meta.source_file == "collection.tsv"
    assert store.meta.source_size == len(PASSAGE_FILES["collection.tsv"])
    store.expect(AutoTokenizer.from_pretrained(tokenizer_folder), 9)


@pytest.mark.parametrize(
    ("file", "content", "place", "found"),
    [
        ("collection.tsv", None, "raw", "holds none of collection.tsv"),
        ("qrels.dev.small.tsv", None, "raw", "holds none of qrels.dev.small.tsv, qrels.dev.tsv"),
        ("collection.tsv", "", "collection.tsv", "empty"),
        ("queries.train.tsv", "", "queries.train.tsv", "empty"),
        ("collection.tsv", "0\tthe cat\n1 the dog\n", "collection.tsv:2", "tab"),
        ("queries.dev.small.tsv", "20 the dog\n", "queries.dev.small.tsv:1", "tab"),
        ("collection.tsv", "0\tthe cat\n \tthe dog\n", "collection.tsv:2", "the id, is empty"),
        ("collection.tsv", "pid\tpassage\n0\tthe cat\n", "collection.tsv:1", "is a header"),
        ("queries.train.tsv", "query_id\ttext\n10\twhat\n", "queries.train.tsv:1", "is a header"),
        ("collection.tsv", "0\tthe cat\n\n7\tthe dog\n", "collection.tsv:2", "line 3 is not"),
        ("collection.tsv", "\n\n", "collection.tsv", "blank lines only"),
        ("collection.tsv", "0\ta\n7\tb\n2\tc\n7\td\n", "collection.tsv:4", "'7' was given before"),
        ("queries.train.tsv", "10\ta\n12\tb\n10\tc\n", "queries.train.tsv:3", "'10' was given before"),
        ("collection.tsv", b"0\ta\n7\t\xff\n", "collection.tsv:2", "UTF-8"),
        ("queries.train.tsv", b"10\t\xc3\n", "queries.train.tsv:1", "UTF-8"),
        ("qrels.train.tsv", "10\t0\t0\t1\n12\t0\t7\n", "qrels.train.tsv:2", "expected 4 columns"),
        ("qrels.train.tsv", "10\t0\n", "qrels.train.tsv:1", "found 2"),
        ("qrels.train.tsv", "10\t0\t0\t1\n12\t0\t7\thigh\n", "qrels.train.tsv:2", "'high'"),
        ("qrels.train.tsv", "10\t0\thigh\n", "qrels.train.tsv:1", "'high'"),
        ("qrels.train.tsv", "10\t0\t0\t0.5\n", "qrels.train.tsv:1", "the relevance is 0.5"),
        ("qrels.train.tsv", "10\t0\t0\t1\n10\t0\t0\t0\n", "qrels.train.tsv:2", "judged 1 on an earlier line and 0"),
        ("qrels.train.tsv", "query-id\tcorpus-id\tscore\n", "qrels.train.tsv", "no judgment"),
        ("qrels.train.tsv", "10\t0\t0\t0\n", "qrels.train.tsv", "no query"),
        ("qrels.train.tsv", "99\t0\t0\t1\n", "qrels.train.tsv", "no query"),
    ],
)
def test_bad_input_is_named_by_file_and_line_and_leaves_nothing(
    preprocess_passages, tmp_path, file, content, place, found
):
    with pytest.raises(InputError) as error:
        preprocess_passages({file: content})
    place = tmp_path / place if place == "raw" else tmp_path / "raw" / place
    assert str(error.value).startswith(f"{place}: ")
    assert found in str(error.value)
    assert nothing_looks_complete(tmp_path / "out")


def test_a_broken_gzip_stream_is_named(preprocess_passages, tmp_path):
    preprocess_passages(zipped=True)
    broken = tmp_path / "raw-gz" / "collection.tsv.gz"
    content = broken.read_bytes()
    for damaged in (content[:-12], content[:14] + b"\xff\xff\xff\xff" + content[18:]):
        broken.write_bytes(damaged)
        with pytest.raises(InputError, match=r"collection\.tsv\.gz:\d+: the gzip stream is broken"):
            rerun(preprocess_passages, tmp_path / "raw-gz", tmp_path / "fresh")
        assert nothing_looks_complete(tmp_path / "fresh")


def rerun(preprocess_passages, raw: Path, out: Path) -> None:
    """Runs the script on the files as they lie there, through the fixture that knows the tokenizer."""
    sys.argv[sys.argv.index("--data_dir") + 1] = str(raw)
    sys.argv[sys.argv.index("--out_data_dir") + 1] = str(out)
    msmarco_data.main()


def test_ids_need_not_be_numbers(preprocess_passages, run_script, tmp_path):
    ids = {"0": "msmarco_passage_00_0", "7": "annual report 7.pdf"}
    lines = PASSAGE_FILES["collection.tsv"].splitlines()
    collection = "".join(f"{ids.get(line[0], line[0])}{line[1:]}\n" for line in lines)
    changes = {
        "collection.tsv": collection,
        "queries.dev.small.tsv": "q-20\tdog of the sky\n",
        "qrels.dev.small.tsv": "q-20\t0\tannual report 7.pdf\t1\n",
        "qrels.train.tsv": "10\t0\tmsmarco_passage_00_0\t1\n",
    }
    out = preprocess_passages(changes)
    assert list(rows(out, "passages")) == ["msmarco_passage_00_0", "1", "2", "annual report 7.pdf"]
    assert (out / "train-qrel.tsv").read_text() == "0\t0\t1\n"
    assert (out / "dev-qrel.tsv").read_text() == "0\t3\t1\n"
    documents = {name: content.replace("D22", "msmarco_doc_00_22") for name, content in DOCUMENT_FILES.items()}
    out = run_script(msmarco_data, write_files(tmp_path / "docs", documents), data_type=0, out=tmp_path / "documents")
    assert list(rows(out, "passages")) == ["D1", "msmarco_doc_00_22"]


def test_columns_after_the_second_are_left_out_and_that_is_said_once(preprocess_passages, tmp_path, capsys):
    two = {"collection.tsv": "0\tthe Cat\n1\tthe sky\n2\ta tree\n7\tdog\n"}
    plain = preprocess_passages(two, out=tmp_path / "two")
    assert "left out, in line" not in capsys.readouterr().out
    three = {"collection.tsv": "0\tthe Cat\n1\tthe sky\tblue\n2\ta tree\tof\twhat\n7\tdog\n"}
    out = preprocess_passages(three, out=tmp_path / "three")
    assert rows(out, "passages") == rows(plain, "passages")
    said = [line for line in capsys.readouterr().out.splitlines() if "columns after the second are left out" in line]
    assert len(said) == 1
    assert "collection.tsv" in said[0]
    assert "line 2 for one: 'blue'" in said[0]


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n\r\n", " \n\t\n", "\n\n\n  "])
def test_blank_lines_at_the_end_say_nothing(preprocess_passages, tmp_path, end):
    plain = preprocess_passages(out=tmp_path / "plain")
    ended = {name: content + end for name, content in PASSAGE_FILES.items()}
    out = preprocess_passages(ended, out=tmp_path / "ended")
    for store in ("passages", "train-query", "dev-query"):
        assert rows(out, store) == rows(plain, store)
    assert (out / "train-qrel.tsv").read_text() == (plain / "train-qrel.tsv").read_text()


def test_a_passage_or_query_that_is_given_twice_alike_is_taken_once(preprocess_passages, tmp_path, capsys):
    plain = preprocess_passages(out=tmp_path / "plain")
    doubled = {
        name: content + content.split("\n")[0] + "\n"
        for name, content in PASSAGE_FILES.items()
        if "qrels" not in name
    }
    out = preprocess_passages(doubled, out=tmp_path / "doubled")
    for store in ("passages", "train-query", "dev-query"):
        assert rows(out, store) == rows(plain, store)
    said = capsys.readouterr().out
    for name in doubled:
        assert f"{name}: 1 texts left out, which come again with the same id" in said


def test_judgments_of_unknown_queries_are_left_out_and_those_of_missing_passages_kept(preprocess_passages, capsys):
    more = "98\t0\t0\t1\n99\t0\t0\t1\n99\t0\t1\t1\n10\t0\t555\t1\n12\t0\t444\t0\n12\t0\t555\t3\n"
    out = preprocess_passages({"qrels.train.tsv": PASSAGE_FILES["qrels.train.tsv"] + more})
    kept = "0\t0\t1\n0\t4\t1\n1\t1\t0\n1\t2\t1\n1\t3\t2\n1\t4\t3\n1\t5\t0\n"
    assert (out / "train-qrel.tsv").read_text() == kept
    assert read_missing_ids(out / "train-qrel.tsv") == ["555", "444"]
    said = capsys.readouterr().out
    assert "qrels.train.tsv: 3 judgments left out, their 2 queries are unknown" in said
    assert "qrels.train.tsv: the collection lacks the passages of 2 of 5 relevant judgments" in said
    out = preprocess_passages()
    assert read_missing_ids(out / "train-qrel.tsv") == []
    assert {path.name for path in out.glob("train*")} == {"train-query", "train-qrel.tsv"}


def test_a_query_that_only_missing_passages_are_relevant_to_is_measured_but_not_trained_on(
    preprocess_passages, capsys
):
    out = preprocess_passages(
        {
            "qrels.train.tsv": "10\t0\t555\t1\n10\t0\t0\t0\n12\t0\t7\t1\n",
            "queries.dev.small.tsv": "20\tdog of the sky\n21\tthe tree\n",
            "qrels.dev.small.tsv": "20 0 7 1\n21 0 555 1\n21 0 7 0\n",
        }
    )
    assert list(rows(out, "train-query")) == ["12"]
    assert list(rows(out, "dev-query")) == ["20", "21"]
    assert (out / "dev-qrel.tsv").read_text() == "0\t3\t1\n1\t3\t0\n1\t4\t1\n"
    said = capsys.readouterr().out
    assert "queries.train.tsv: 1 more queries left out" in said
    assert "and 1 of 2 queries, which have no others, with 0" in said


def test_no_judgment_of_a_known_passage_is_an_error_and_the_split_is_not_there(preprocess_passages, tmp_path):
    with pytest.raises(InputError, match=r"qrels\.dev\.small\.tsv: the collection holds none"):
        preprocess_passages({"qrels.dev.small.tsv": "20\t0\t555\t1\n"})
    assert not (tmp_path / "out" / "dev-query").exists()
    assert not (tmp_path / "out" / "dev-qrel.tsv").exists()


def test_a_run_that_fails_takes_away_the_judgments_of_an_earlier_one(preprocess_passages, tmp_path):
    out = preprocess_passages()
    with pytest.raises(InputError):
        preprocess_passages({"collection.tsv": "0\tthe cat\nno tab\n"})
    assert not list(out.glob("*-qrel.tsv")), "they would name rows of a store that is not theirs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_type": 2}, "--data_type 2"),
        ({"model_type": "rdot_nll_condensor"}, "rdot_nll_condensor"),
        ({"max_seq_length": 2}, "no room"),
        ({"max_doc_character": 0}, "--max_doc_character"),
    ],
)
def test_flags_that_make_no_sense_are_refused(preprocess_passages, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        preprocess_passages(**flags)
    assert nothing_looks_complete(tmp_path / "out")


def test_a_folder_without_a_tokenizer_is_named_with_the_cure(preprocess_passages, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no tokenizer can be loaded .*give a folder"):
        preprocess_passages(model_name_or_path=tmp_path / "empty")


def test_the_script_runs_from_another_folder_and_fails_with_one_line(tmp_path, tokenizer_folder):
    raw = write_files(tmp_path / "raw", PASSAGE_FILES | {"collection.tsv": "0 no tab\n"})
    command = [sys.executable, ROOT / "data" / "msmarco_data.py", "--data_dir", raw.name, "--out_data_dir", "out"]
    finished = subprocess.run(
        [*command, "--model_name_or_path", tokenizer_folder],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "error: raw/collection.tsv:1: expected 2 fields" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert nothing_looks_complete(tmp_path / "out")
