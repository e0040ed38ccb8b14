"""Training data in every layout: read as one collection, the same one wherever they are the same."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import beir_data, import_data, msmarco_data
from data.layouts.find import LAYOUTS, find_layout
from tests.data.layouts.examples import (
    DEV,
    NEGATIVES,
    PASSAGES,
    POSITIVES,
    QUERIES,
    WRITERS,
    examples,
    jsonl,
    write_beir,
    write_msmarco,
    write_pairs,
)
from utils.runtime.errors import InputError


@pytest.fixture
def run_import(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Runs import_data.py on sources and returns the folder of the collection."""

    def run_main(*sources: Path, out: Path = tmp_path / "imported", **flags) -> Path:
        flags = {"data_dir": ":".join(map(str, sources)), "out_dir": out} | flags
        line = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        monkeypatch.setattr(sys, "argv", ["import_data.py", *line])
        import_data.main()
        return out

    return run_main


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_of(folder: Path, name: str) -> dict[str, str]:
    """Id → text of passages or queries."""
    (path,) = [path for path in (folder / f"{name}.jsonl", folder / "corpus.jsonl") if path.exists()][:1]
    return {record["_id"]: record["text"] for record in records(path)}


def judged(folder: Path, split: str) -> dict[tuple[str, str], int]:
    """(query's text, passage's text) → grade."""
    queries, passages = texts_of(folder, "queries"), texts_of(folder, "passages")
    lines = [line.split("\t") for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
    return {(queries[query], passages[passage]): int(grade) for query, passage, grade in lines}


def tokenize(script, raw: Path, out: Path, tokenizer_folder: str, monkeypatch, *flags: str) -> Path:
    line = ["--data_dir", raw, "--out_data_dir", out, "--model_name_or_path", tokenizer_folder, *flags]
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, line), "--max_seq_length", "20"])
    script.main()
    return out


EXPECTED = {
    "train": {(QUERIES[i], PASSAGES[p]): 1 for i in POSITIVES for p in POSITIVES[i]}
    | {(QUERIES[i], PASSAGES[p]): 0 for i in NEGATIVES for p in NEGATIVES[i]},
    "dev": {(text, PASSAGES[p]): 1 for text, p in DEV.values()},
}


@pytest.mark.parametrize("form", WRITERS)
def test_a_layout_is_known_by_what_is_there_and_read_as_the_same_data(form, tmp_path, run_import):
    name, write = WRITERS[form]
    source = write(tmp_path / "source")
    assert find_layout(source).name == name
    if name == "msmarco":
        (source / "qrels.dev.tsv").unlink()  # with dev queries of its own, and alone, it is read in place
    out = run_import(source)
    if name == "msmarco":
        found = judged(out, "train") | judged(out, "dev")
        assert found == EXPECTED["train"]
    else:
        assert {split: judged(out, split) for split in ("train", "dev")} == EXPECTED
    assert [*texts_of(out, "passages").values()] == PASSAGES, "in their order"
    assert set(texts_of(out, "queries").values()) >= set(QUERIES)


@pytest.mark.parametrize("form", [form for form in WRITERS if form != "msmarco"])
def test_stores_are_byte_for_byte_the_same_in_every_layout(form, tmp_path, run_import, tokenizer_folder, monkeypatch):
    raw = write_msmarco(tmp_path / "msmarco")
    expected = tokenize(msmarco_data, raw, tmp_path / "expected", tokenizer_folder, monkeypatch)
    imported = run_import(WRITERS[form][1](tmp_path / "source"))
    out = tokenize(beir_data, imported, tmp_path / "out", tokenizer_folder, monkeypatch, "--split", "train", "dev")
    for store in ("passages", "train-query", "dev-query"):
        for name in ("tokens.npy", "offsets.npy"):
            assert (out / store / name).read_bytes() == (expected / store / name).read_bytes(), (store, name)
    for name in ("train-qrel.tsv", "dev-qrel.tsv"):
        assert (out / name).read_text() == (expected / name).read_text()


def test_every_layout_has_a_test():
    assert {name for name, _ in WRITERS.values()} == LAYOUTS.keys()


@pytest.mark.parametrize("size", [1, 3, 4_000])
def test_the_size_of_blocks_changes_nothing(size, tmp_path, run_import, monkeypatch):
    source = write_pairs(tmp_path / "source")
    whole = run_import(source, out=tmp_path / "whole")
    monkeypatch.setattr("data.collection_writer.BLOCK_RECORDS", size)
    parts = run_import(source, out=tmp_path / "parts")
    for path in whole.rglob("*"):
        if path.is_file() and path.name != "import.json":
            assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes(), path.name


def test_msmarco_with_dev_queries_is_left_where_it_is(tmp_path, run_import):
    source = write_msmarco(tmp_path / "source")
    out = run_import(source, settings_file=tmp_path / "settings")
    assert (tmp_path / "settings").read_text() == f"DATA_DIR={source}\nLAYOUT=msmarco\nTEST=0\nTEST_NAME=\n"
    assert not out.exists()


def test_a_test_split_is_told(tmp_path, run_import):
    source = write_beir(tmp_path / "source")
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq9\tp1\t1\n")
    out = run_import(source, settings_file=tmp_path / "settings")
    assert (tmp_path / "settings").read_text() == f"DATA_DIR={out}\nLAYOUT=beir\nTEST=1\nTEST_NAME=source\n"
    assert judged(out, "test") == {("how is the dog", PASSAGES[1]): 1}


# --- Dev queries ----------------------------------------------------------------------------------------------------


def many_pairs(path: Path, queries: int, repeat: int = 1) -> Path:
    jsonl(
        path, [{"query": f"what is {i}", "positive": f"it is {i} {j}"} for j in range(repeat) for i in range(queries)]
    )
    return path


@pytest.mark.parametrize(
    ("queries", "share", "held"), [(40, 0.1, 4), (40, 0.5, 20), (3, 0.1, 1), (2, 0.9, 1), (1500, 0.9, 1000)]
)
def test_a_share_of_the_queries_is_held_out_whole_and_said(queries, share, held, tmp_path, run_import, capsys):
    out = run_import(many_pairs(tmp_path / "pairs.jsonl", queries, repeat=2), dev_share=share)
    train, dev = ({query for query, _ in judged(out, split)} for split in ("train", "dev"))
    assert (len(train), len(dev), train & dev) == (queries - held, held, set())
    assert f"{held:,} of {queries:,} training queries are held out as dev queries" in capsys.readouterr().out


def test_the_same_queries_are_held_out_in_every_layout_and_order_and_others_by_another_seed(tmp_path, run_import):
    pairs = [{"query": f"what is {i}", "positive": f"it is {i}"} for i in range(50)]
    jsonl(tmp_path / "a.jsonl", pairs)
    jsonl(tmp_path / "b.jsonl", [{"query": row["query"], "pos": [row["positive"]]} for row in reversed(pairs)])
    held = [
        {query for query, _ in judged(run_import(tmp_path / name, out=tmp_path / f"{name}{seed}", seed=seed), "dev")}
        for name, seed in (("a.jsonl", 1), ("b.jsonl", 1), ("a.jsonl", 2))
    ]
    assert held[0] == held[1] != held[2]


def test_a_held_out_text_trains_under_no_other_id(tmp_path, run_import):
    rows = [
        {
            "query_id": f"{i}",
            "query": f"what is {i % 20}",
            "positive_passages": [{"docid": f"d{i}", "text": f"it is {i}"}],
        }
        for i in range(60)
    ]
    jsonl(tmp_path / "a.jsonl", rows[:40])
    jsonl(tmp_path / "b.jsonl", rows[20:])
    out = run_import(tmp_path / "a.jsonl", tmp_path / "b.jsonl", dev_share=0.3)
    train, dev = ({query for query, _ in judged(out, split)} for split in ("train", "dev"))
    assert train
    assert dev
    assert not train & dev


def test_a_held_out_text_trains_in_no_other_spacing(tmp_path, run_import):
    rows = [{"query": f"what{' ' * (1 + i // 20)}is {i % 20}", "positive": f"it is {i}"} for i in range(60)]
    jsonl(tmp_path / "a.jsonl", rows)
    out = run_import(tmp_path / "a.jsonl", dev_share=0.3)
    train, dev = ({tuple(query.split()) for query, _ in judged(out, split)} for split in ("train", "dev"))
    assert train
    assert dev
    assert not train & dev


@pytest.mark.parametrize("positives", [[], [{"docid": "a", "text": "so"}]])
def test_hidden_test_queries_are_not_measured(positives, tmp_path, run_import):
    row = {"query_id": "1", "query": "why", "positive_passages": [{"docid": "a", "text": "so"}]}
    jsonl(tmp_path / "x" / "train.jsonl", [row | {"query_id": f"{i}", "query": f"why {i}"} for i in range(4)])
    jsonl(tmp_path / "x" / "test.jsonl", [row | {"query_id": "t", "query": "when", "positive_passages": positives}])
    out = run_import(tmp_path / "x", settings_file=tmp_path / "settings")
    assert (out / "qrels" / "test.tsv").exists() == bool(positives)
    assert f"TEST={len(positives)}\n" in (tmp_path / "settings").read_text()


def test_without_a_dev_query_that_has_an_answer_the_sources_are_named(tmp_path, run_import):
    beir = write_beir(tmp_path / "mine")
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq8\tp1\t0\n")
    with pytest.raises(InputError, match=r"^mine: no query is left to measure with"):
        run_import(beir)


def test_dev_queries_that_also_train_are_said(tmp_path, run_import, capsys):
    folder = tmp_path / "source"
    jsonl(folder / "train.jsonl", [{"query": f"what is {i}", "positive": f"it is {i}"} for i in range(5)])
    jsonl(folder / "dev.jsonl", [{"query": "what is 3", "positive": "it is 9"}, {"query": "why", "positive": "so"}])
    run_import(folder)
    assert "warning: 1 of 2 dev queries are training queries too, by their texts" in capsys.readouterr().out


# --- Several sources ------------------------------------------------------------------------------------------------


def test_sources_are_mixed_with_ids_kept_apart_and_queries_know_theirs(tmp_path, run_import):
    sources = write_beir(tmp_path / "one"), write_pairs(tmp_path / "two"), write_msmarco(tmp_path / "three")
    out = run_import(*sources)
    passages = texts_of(out, "passages")
    assert [*passages.values()] == PASSAGES * 3, "equal texts of two sources are two passages"
    assert [*passages][:: len(PASSAGES)] == ["one/p0", "two/passages/p1", "three/passages/0"]
    of_query = dict(line.split("\t") for line in (out / "sources.tsv").read_text().splitlines())
    assert of_query == {query: query.split("/")[0] for query in texts_of(out, "queries")}
    for split in ("train", "dev"):
        lines = [line.split("\t") for line in (out / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
        assert len(lines) == 3 * len(EXPECTED[split])
        assert all(query.split("/")[0] == passage.split("/")[0] for query, passage, _ in lines)


def test_beside_beirs_layout_an_id_that_a_query_and_a_passage_share_is_still_two_texts(tmp_path, run_import):
    """In BEIR's layout such a passage is the query itself, and is left out of its ranking."""
    out = run_import(write_beir(tmp_path / "one"), write_msmarco(tmp_path / "two"))
    assert (out / "corpus.jsonl").exists()
    assert not texts_of(out, "queries").keys() & texts_of(out, "passages").keys()


def test_sources_are_named_after_their_files_without_the_suffix_alone(tmp_path, run_import):
    sources = [many_pairs(tmp_path / f"wiki.{language}.jsonl", 3) for language in ("de", "en")]
    names = {line.split("\t")[1] for line in (run_import(*sources) / "sources.tsv").read_text().splitlines()}
    assert names == {"wiki.de", "wiki.en"}


@pytest.mark.parametrize(
    ("second", "reason"),
    [("", r"a colon stands between two sources, and one of them is empty"), ("a  b", r"would be 'a  b'.*rename it")],
)
def test_sources_without_a_name_that_can_be_shown_are_refused(second, reason, tmp_path, run_import, monkeypatch):
    monkeypatch.chdir(tmp_path)
    many_pairs(tmp_path / "a  b" / "train.jsonl", 3)
    with pytest.raises(InputError, match=reason):
        run_import(many_pairs(tmp_path / "x.jsonl", 3), out=tmp_path / "out", data_dir=f"x.jsonl:{second}")


def test_sources_of_one_name_are_refused(tmp_path, run_import):
    for name in ("a", "b"):
        many_pairs(tmp_path / name / "pairs.jsonl", 4)
    with pytest.raises(InputError, match=r"two sources are named 'pairs'; rename one"):
        run_import(tmp_path / "a" / "pairs.jsonl", tmp_path / "b" / "pairs.jsonl")


# --- What the data bring along --------------------------------------------------------------------------------------


def test_a_teachers_scores_are_kept_by_id(tmp_path, run_import):
    rows = [
        {"query": "why", "pos": ["so"], "neg": ["no", "never"], "pos_scores": [0.5], "neg_scores": [-1, 2e-3]},
        {"query": "how", "pos": ["so", "thus"], "neg": []},
        {"query": "what", "pos": ["that"], "neg": ["no"], "pos_scores": [3.25], "neg_scores": [1]},
    ]
    jsonl(tmp_path / "data.jsonl", rows)
    out = run_import(tmp_path / "data.jsonl", dev_share=0.4)
    queries, passages = texts_of(out, "queries"), texts_of(out, "passages")
    lines = [line.split("\t") for line in (out / "scores.tsv").read_text().splitlines()[1:]]
    found = [(queries[query], passages[passage], float(score)) for query, passage, score in lines]
    assert found == [
        *(("why", "so", 0.5), ("why", "no", -1.0), ("why", "never", 2e-3)),
        *(("what", "that", 3.25), ("what", "no", 1.0)),
    ]


def test_prompts_of_flagembedding_stand_before_the_query_and_are_said(tmp_path, run_import, capsys):
    rows = [{"query": f"why {i}", "pos": [f"so {i}"], "prompt": "Represent: "} for i in range(3)]
    jsonl(tmp_path / "data.jsonl", rows)
    out = run_import(tmp_path / "data.jsonl")
    assert set(texts_of(out, "queries").values()) == {f"Represent: why {i}" for i in range(3)}
    assert "queries begin with their prompts, like 'Represent: '" in capsys.readouterr().out


def test_a_negative_that_answers_the_query_elsewhere_is_no_negative(tmp_path, run_import):
    rows = [
        {"query": "why", "positive": "so", "negative": "thus"},
        {"query": "why", "positive": "thus", "negative": "so"},
        {"query": "how", "positive": "so", "negative": "thus"},
    ]
    jsonl(tmp_path / "pairs.jsonl", rows)
    out = run_import(tmp_path / "pairs.jsonl", dev_share=0.3)
    assert judged(out, "train") | judged(out, "dev") == {
        ("why", "so"): 1,
        ("why", "thus"): 1,
        ("how", "so"): 1,
        ("how", "thus"): 0,
    }


def test_negatives_that_only_later_rows_have_are_read(tmp_path, run_import):
    rows = [{"query": f"why {i}", "positive": f"so {i}"} for i in range(3)]
    jsonl(tmp_path / "x.jsonl", [*rows, {"query": "how", "positive": "thus", "negative_2": "no"}])
    out = run_import(tmp_path / "x.jsonl")
    assert (judged(out, "train") | judged(out, "dev"))["how", "no"] == 0
    jsonl(tmp_path / "x.jsonl", [*rows, {"query": "how", "positive": "thus", "label": 0}])
    with pytest.raises(InputError, match=r"has a column 'label'"):
        run_import(tmp_path / "x.jsonl")


def test_columns_can_be_named(tmp_path, run_import):
    jsonl(
        tmp_path / "rows.jsonl",
        [{"title": f"why {i}", "body": f"so {i}", "label": 1, "other": "no"} for i in range(4)],
    )
    out = run_import(tmp_path / "rows.jsonl", pair_columns="title,body,other")
    assert (judged(out, "train") | judged(out, "dev"))["why 2", "so 2"] == 1
    assert (judged(out, "train") | judged(out, "dev"))["why 2", "no"] == 0


@pytest.mark.parametrize("heading", ["Question,Answer", "question, answer", " QUERY ,Positive"])
def test_neither_case_nor_blanks_of_column_names_count(heading, tmp_path, run_import):
    (tmp_path / "rows.csv").write_text(f'{heading}\nwhy, "so, it is"\nhow,thus\n')
    out = run_import(tmp_path / "rows.csv")
    assert (judged(out, "train") | judged(out, "dev")) == {("why", "so, it is"): 1, ("how", "thus"): 1}
    named = run_import(tmp_path / "rows.csv", out=tmp_path / "named", pair_columns=heading)
    assert texts_of(named, "passages") == texts_of(out, "passages")


def test_a_csv_line_that_is_no_utf8_and_other_separators_are_named(tmp_path, run_import):
    rows = [f"q {i},a {i}" for i in range(50)]
    (tmp_path / "x.csv").write_bytes(
        "\n".join(["query,positive", *rows[:40], "caf\u00e9,so", *rows[40:]]).encode("cp1252")
    )
    with pytest.raises(
        InputError, match=r"x\.csv:42: is not valid UTF-8 at byte 3 of the line; convert .* iconv -f cp1252"
    ):
        run_import(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("query;positive\nwhy;so, it is\n")
    with pytest.raises(
        InputError, match=r"y\.csv:1: the first line is one column, .* separated by ';'; separate columns by"
    ):
        run_import(tmp_path / "y.csv")


def test_a_csv_field_may_hold_commas_quotes_and_line_breaks(tmp_path, run_import):
    (tmp_path / "rows.csv").write_text('query,positive\n"why, ""so""","so\nit is"\nhow,thus\n')
    out = run_import(tmp_path / "rows.csv")
    assert set(texts_of(out, "queries").values()) == {'why, "so"', "how"}
    assert set(texts_of(out, "passages").values()) == {"so\nit is", "thus"}


# --- Which files of a folder ---

ROWS = [{"query": f"why {i}", "positive": f"so {i}"} for i in range(4)]


@pytest.mark.parametrize(
    ("files", "read", "left_out"),
    [
        ({"dataset_infos.json": ["{"], "data/train-00000-of-00001.jsonl": ROWS}, 4, "dataset_infos.json"),
        ({"config.json": ["{"], "pairs.jsonl": ROWS}, 4, "config.json"),
        ({"train.jsonl": ROWS[:3], "more.jsonl": ROWS[3:]}, 3, "more.jsonl"),
        ({"a.jsonl": ROWS[:3], "b.jsonl": ROWS[3:], "README.md": ["#"]}, 4, None),
        ({"all.json": ROWS}, 4, None),
        ({"data/all.jsonl": ROWS}, 4, None),
        ({"train-0.jsonl": ROWS[:2], "train_sft.jsonl": ROWS[2:]}, 4, None),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_files_beside_the_data_are_no_data_and_what_is_left_out_is_said(
    files, read, left_out, tmp_path, run_import, capsys
):
    for name, rows in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    assert len(texts_of(run_import(tmp_path / "source"), "queries")) == read
    said = [line.split("left out: ")[1] for line in capsys.readouterr().out.splitlines() if "files that are" in line]
    assert said == ([left_out] if left_out else [])


# --- Made once ------------------------------------------------------------------------------------------------------


def test_what_is_there_of_the_same_files_stays_and_others_make_it_anew_unless_it_is_in_use(
    tmp_path, run_import, capsys
):
    source = many_pairs(tmp_path / "pairs.jsonl", 9)
    out = run_import(source)
    before = (out / "passages.jsonl").stat().st_mtime_ns
    run_import(source, in_use=True)
    assert "imported already, from the same files" in capsys.readouterr().out
    assert (out / "passages.jsonl").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"in use.*dev_share was 0\.1 and is 0\.5"):
        run_import(source, in_use=True, dev_share=0.5)
    many_pairs(source, 10)
    with pytest.raises(InputError, match=r"in use.*pairs\.jsonl had \d+ bytes"):
        run_import(source, in_use=True)
    assert len(texts_of(out, "passages")) == 9
    run_import(source)
    assert len(texts_of(out, "passages")) == 10


def test_a_mistake_on_the_last_line_leaves_nothing_half_written(tmp_path, run_import):
    source = many_pairs(tmp_path / "pairs.jsonl", 9)
    with source.open("a") as file:
        file.write('{"query": "why"}\n')
    with pytest.raises(InputError, match=r"pairs\.jsonl:10: expected a text as positive, found nothing"):
        run_import(source)
    assert {path.name for path in tmp_path.iterdir()} <= {"pairs.jsonl", ".lock"}


# --- Mistakes -------------------------------------------------------------------------------------------------------

GOOD = {"query": "why", "positive": "so"}
MISTAKES = {
    "no JSON": (["{", GOOD], r"x\.jsonl:1: is not valid JSON"),
    "a list": (['[{"query": 1}]', GOOD], r"x\.jsonl:1: expected a JSON object a line"),
    "a list over lines": (["[", GOOD], r"x\.jsonl:1: is not valid JSON .* jq -c"),
    "columns": ([{"title": "a", "body": "b"}], r"has the columns 'title', 'body': say which .* --pair_columns"),
    "a label": ([GOOD | {"label": 0}], r"has a column 'label'.*--pair_columns query,positive"),
    "an empty query": ([GOOD, GOOD | {"query": "  "}], r"x\.jsonl:2: query is empty"),
    "a number": ([GOOD, GOOD | {"positive": 3}], r"x\.jsonl:2: expected a text as positive, found 3"),
    "a surrogate": (['{"query": "why", "positive": "\\ud800"}'], r"x\.jsonl:1: holds half of a pair of surrogates"),
    "one query": ([GOOD, GOOD | {"positive": "thus"}], r"x: has 1 training queries, of which none can be held out"),
    "pos": ([{"query": "why", "pos": []}], r"x\.jsonl:1: pos is empty"),
    "pos_scores": ([{"query": "why", "pos": ["so"], "pos_scores": [1, 2]}], r"expected 1 numbers as pos_scores"),
    "half of the scores": (
        [{"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [1]}],
        r"scores of one side only",
    ),
    "no collection": (
        [{"query_text": "why", "positive_document_ids": ["d1"]}],
        r"no collection .* put corpus\.jsonl",
    ),
    "docid": (
        [
            {"query": "a", "positive_passages": [{"docid": "d", "text": "b"}]},
            {"query": "b", "positive_passages": [{"docid": "d", "text": "c"}]},
        ],
        r"x\.jsonl:2: the id 'd' was given before, with another text",
    ),
    "no positive": ([{"query": "a", "positive_passages": []}], r"x\.jsonl:1: no passage answers the query"),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("asked", [False, True])
def test_mistakes_name_file_line_and_cure(kind, asked, tmp_path, run_import):
    rows, reason = MISTAKES[kind]
    path = tmp_path / "x.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    layout = "pairs"
    for name in ("pos", "positive_passages", "positive_document_ids"):
        if isinstance(rows[0], dict) and name in rows[0]:
            layout = "flagembedding" if name == "pos" else "tevatron"
    if kind == "columns" and not asked:
        reason = "is of no known layout"
    with pytest.raises(InputError, match=reason):
        run_import(path, layout=layout if asked else "auto")
    assert not (tmp_path / "imported").exists()


def test_places_that_are_none_are_told_with_the_cure(tmp_path, run_import):
    with pytest.raises(InputError, match=r"nowhere: no such file or folder .*--layout datasets"):
        run_import(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: is of no known layout.*docs/your_data\.md"):
        run_import(tmp_path / "folder")
    with pytest.raises(InputError, match=r"--layout 'hdf5' is unknown"):
        run_import(tmp_path / "folder", layout="hdf5")
    beir = write_beir(tmp_path / "beir")
    (beir / "qrels" / "train.tsv").rename(beir / "qrels" / "test.tsv")
    with pytest.raises(InputError, match=r"beir: holds no judgments to train on: qrels/train\.tsv"):
        run_import(beir)
    (tmp_path / "x.csv").write_text("1,why\n2,how\n")
    reason = r"x\.csv: is of no known layout \(x\.csv has the columns '1', 'why'; the first line of CSV and TSV names"
    with pytest.raises(InputError, match=reason):
        run_import(tmp_path / "x.csv")


@pytest.mark.parametrize("flag", ["pair_columns", "data_config", "data_split"])
def test_what_no_source_takes_is_refused(flag, tmp_path, run_import):
    jsonl(tmp_path / "x.jsonl", [{"query": f"why {i}", "pos": ["so"]} for i in range(3)])
    with pytest.raises(InputError, match=rf"--{flag} is of the layout .*datasets, and the data are read as flagemb"):
        run_import(tmp_path / "x.jsonl", **{flag: "query,pos"})


def test_a_score_that_is_none_is_told_with_the_line(tmp_path, run_import):
    beir = write_beir(tmp_path / "beir", as_json=True)
    with (beir / "qrels" / "train.jsonl").open("a") as file:
        file.write('{"query-id": "q0", "corpus-id": "p0"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl:\d+: expected a number as score, found None"):
        run_import(beir)


def test_the_split_that_trains_is_the_one_of_that_name_or_has_to_be_named(tmp_path, run_import):
    datasets = pytest.importorskip("datasets")
    made = {
        name: datasets.Dataset.from_list(ROWS[:n]) for name, n in (("train_extra", 2), ("train", 4), ("other", 3))
    }
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved")
    assert len(texts_of(run_import(tmp_path / "saved", out=tmp_path / "one"), "queries")) == 4
    named = run_import(tmp_path / "saved", out=tmp_path / "two", data_split="other")
    assert len(texts_of(named, "queries")) == 3
    made["train_more"] = made.pop("train")
    datasets.DatasetDict(made).save_to_disk(tmp_path / "two_of_them")
    with pytest.raises(InputError, match=r"several splits of train: train_extra, train_more; .* --data_split"):
        run_import(tmp_path / "two_of_them", out=tmp_path / "three")


def test_the_hub_is_asked_once_and_a_data_set_is_known_by_its_whole_name(tmp_path, run_import, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, streaming: bool):
        asked.append((name, config))
        rows = [{"query": f"{name} {i}", "positive": f"so {i}"} for i in range(4)]
        return datasets.IterableDatasetDict({"train": datasets.Dataset.from_list(rows).to_iterable_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    first = {"layout": "datasets", "data_dir": "one/set", "settings_file": tmp_path / "settings"}
    out = run_import(**first)
    settings = (tmp_path / "settings").read_text()
    run_import(**first, in_use=True)
    assert asked == [("one/set", None)]
    assert "imported already, from the hub" in capsys.readouterr().out
    assert (tmp_path / "settings").read_text() == settings
    with pytest.raises(InputError, match=r"in use.*sources was \['one/set'\] and is \['other/set'\]"):
        run_import(**first | {"data_dir": "other/set"}, in_use=True)
    run_import(**first | {"data_dir": "other/set"})
    assert {text.split()[0] for text in texts_of(out, "queries").values()} == {"other/set"}
    run_import(**first | {"data_dir": "other/set", "data_config": "big"})
    assert asked[-1] == ("other/set", "big")


def test_what_is_imported_already_is_not_read_again(tmp_path, run_import, monkeypatch):
    sources = [WRITERS[form][1](tmp_path / form) for form in ("beir", "tevatron", "msmarco", "pairs as CSV")]
    run_import(*sources)
    monkeypatch.setattr("data.layouts.rows.count_lines", lambda path: pytest.fail(f"{path} is read to its end"))
    run_import(*sources)


def test_a_folder_that_datasets_reads_is_known_again_by_its_files(tmp_path, run_import, capsys):
    pytest.importorskip("datasets")
    source = many_pairs(tmp_path / "source" / "train.jsonl", 5).parent
    run_import(source, layout="datasets")
    run_import(source, layout="datasets")
    assert "imported already" in capsys.readouterr().out
    many_pairs(source / "train.jsonl", 6)
    assert len(texts_of(run_import(source, layout="datasets"), "queries")) == 6


def test_judgments_that_contradict_each_other_are_told_with_the_line(tmp_path, run_import):
    beir = write_beir(tmp_path / "beir")
    with (beir / "qrels" / "train.tsv").open("a") as file:
        file.write("q0\tp0\t0\n")
    lines = len((beir / "qrels" / "train.tsv").read_text().splitlines())
    with pytest.raises(InputError, match=rf"train\.tsv:{lines}: query q0 and passage p0 are judged 1 .* and 0 here"):
        run_import(beir)


def test_judged_passages_that_are_missing_stay_judged_and_are_said(tmp_path, run_import, capsys):
    beir = write_beir(tmp_path / "beir")
    with (beir / "qrels" / "train.tsv").open("a") as file:
        file.write("q0\tlost\t1\nstranger\tp0\t1\n")
    out = run_import(beir)
    said = capsys.readouterr().out
    assert "beir: 1 judged passages, like lost, are not in the collection" in said
    assert "1 judgments left out, their queries are unknown" in said
    assert "q0\tlost\t1\n" in (out / "qrels" / "train.tsv").read_text()
    assert "stranger" not in (out / "qrels" / "train.tsv").read_text()


def test_texts_are_numbered_as_a_dictionary_numbers_them(tmp_path, run_import, monkeypatch):
    """Two independent ways: the writer's numbers against a dictionary's, over rows with many repetitions."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "query": f"q {generator.integers(40)}",
            "pos": [f"p {generator.integers(60)}"],
            "neg": [f"p {generator.integers(60)}"],
        }
        for _ in range(300)
    ]
    jsonl(tmp_path / "x.jsonl", rows)
    monkeypatch.setattr("data.collection_writer.BLOCK_RECORDS", 7)
    out = run_import(tmp_path / "x.jsonl")
    seen = dict.fromkeys(text for row in rows for text in (*row["pos"], *row["neg"]))
    assert [*texts_of(out, "passages").items()] == [(f"p{i + 1}", text) for i, text in enumerate(seen)]
    expected: dict[tuple[str, str], int] = {}
    for row in rows:
        for side, grade in (("pos", 1), ("neg", 0)):
            key = row["query"], row[side][0]
            expected[key] = max(expected.get(key, 0), grade)
    assert judged(out, "train") | judged(out, "dev") == expected


def test_examples_hold_what_the_files_do():
    assert sum(len(positives) + len(negatives) for _, positives, negatives in examples()["train"]) == len(PASSAGES)
