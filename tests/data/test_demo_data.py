"""The demo collection: real pairs only, the same bytes every time, dev and zero-shot texts unseen in training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import demo_data
from data.demo_data import Collection, Pair, build, choose, collect_pairs, find_library, merge, split_docstring
from utils.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BODY = "It takes the rows one by one and gives back the sum of those."


def docstring(summary: str, body: str = BODY) -> str:
    return f'"""{summary}\n\n    {body}\n    """'


def function(name: str, summary: str, body: str = BODY) -> str:
    return f"def {name}():\n    {docstring(summary, body)}\n\n\n"


def library(folder: Path, name: str, functions: int, verb: str = "Count") -> Path:
    """A package of modules with documented functions; every third one's body is that of the function before it."""
    root = folder / name
    (root / "deep").mkdir(parents=True)
    for module in range(3):
        source = "".join(
            function(f"f{i}", f"{verb} the rows of {name} {i}", f"{BODY} This is {name} {i - (i % 3 == 2)}.")
            for i in range(module, functions, 3)
        )
        path = root / "deep" / "_private.py" if module == 2 else root / f"m{module}.py"
        path.write_text(source)
    return root


def tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def build_in(folder: Path, training: dict[str, Path], zero_shot: dict[str, Path], most: int = 1000) -> None:
    build(training, zero_shot, folder / "msmarco", folder / "beir", most, most)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def collected(folder: Path, source: str | bytes) -> list[Pair]:
    (folder / "lib").mkdir()
    (folder / "lib" / "module.py").write_bytes(source.encode() if isinstance(source, str) else source)
    return collect_pairs({"lib": folder / "lib"})


def test_the_same_sources_give_the_same_bytes_whatever_the_hash_seed(tmp_path):
    library(tmp_path, "alpha", 60)
    library(tmp_path, "beta", 40)
    library(tmp_path, "gamma", 30)
    program = (
        "import sys; from pathlib import Path; from data.demo_data import build; lib, out = map(Path, sys.argv[1:]);"
        "build({n: lib / n for n in ('alpha', 'beta')}, {'gamma': lib / 'gamma'}, out / 'm', out / 'b', 50, 10)"
    )
    results = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        command = [sys.executable, "-c", program, tmp_path, out]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        results.append(files_of(out))
    assert len(results[0]) == 8
    assert results[0] == results[1]


def test_every_file_of_both_layouts_is_written_and_fits_together(tmp_path):
    build_in(tmp_path, {"alpha": library(tmp_path, "alpha", 30)}, {"beta": library(tmp_path, "beta", 9)})
    passages = dict(tsv(tmp_path / "msmarco" / "collection.tsv"))
    assert list(passages) == [str(row) for row in range(len(passages))]
    pairs = set()
    for name in ("train", "dev.small"):
        queries = dict(tsv(tmp_path / "msmarco" / f"queries.{name}.tsv"))
        qrels = tsv(tmp_path / "msmarco" / f"qrels.{name}.tsv")
        assert {query for query, *_ in qrels} == queries.keys()
        assert all(rest[::2] == ["0", "1"] for _, *rest in qrels)
        pairs |= {(queries[query], passages[passage]) for query, _, passage, _ in qrels}
    assert pairs == {(f"Count the rows of alpha {i}", f"{BODY} This is alpha {i - (i % 3 == 2)}.") for i in range(30)}

    corpus = {record["_id"]: record for record in jsonl(tmp_path / "beir" / "corpus.jsonl")}
    queries = {record["_id"]: record["text"] for record in jsonl(tmp_path / "beir" / "queries.jsonl")}
    header, *qrels = tsv(tmp_path / "beir" / "qrels" / "test.tsv")
    assert header == ["query-id", "corpus-id", "score"]
    assert {(queries[query], corpus[passage]["text"]) for query, passage, _ in qrels} == {
        (f"Count the rows of beta {i}", f"{BODY} This is beta {i - (i % 3 == 2)}.") for i in range(9)
    }
    assert {"beta/m0.py:1", "beta/deep/_private.py:1"} < corpus.keys()
    assert "beta/m1.py:1" not in corpus, "its text stood in deep/_private.py before"
    assert not corpus.keys() & queries.keys(), "a passage with its query's id is left out of the ranking"


def test_no_query_text_is_in_both_train_and_dev(tmp_path):
    build_in(tmp_path, {"alpha": library(tmp_path, "alpha", 90)}, {"beta": library(tmp_path, "beta", 9)})
    train, dev = (
        {text for _, text in tsv(tmp_path / "msmarco" / f"queries.{name}.tsv")} for name in ("train", "dev.small")
    )
    assert not train & dev
    assert len(train | dev) == 90
    assert len(dev) == 45, "300 are wanted, but never more than a half"


def test_dev_is_a_tenth_of_a_large_collection_chosen_by_text_alone(monkeypatch):
    monkeypatch.setattr(demo_data, "LEAST_DEV_QUERIES", 20)
    queries = [f"query {i}" for i in range(400)]
    train, dev = demo_data.split_queries(queries)
    assert len(dev) == 40
    assert sorted(train + dev) == sorted(queries)
    assert set(demo_data.split_queries(queries[::-1])[1]) == set(dev)


def test_as_many_dev_queries_as_are_asked_for_and_those_of_fewer_among_them(monkeypatch):
    monkeypatch.setattr(demo_data, "LEAST_DEV_QUERIES", 20)
    queries = [f"query {i}" for i in range(400)]
    train, dev = demo_data.split_queries(queries, 150)
    assert (len(train), len(dev)) == (250, 150)
    assert not set(train) & set(dev)
    assert set(demo_data.split_queries(queries)[1]) < set(dev)
    assert len(demo_data.split_queries(queries, 200)[1]) == 200
    with pytest.raises(InputError, match="--dev_queries is 201"):
        demo_data.split_queries(queries, 201)


def test_texts_equal_but_for_white_space_are_one_passage_and_one_query(tmp_path):
    spread = BODY.replace(" gives", "\n\n      gives\t").replace("rows ", "rows   ")
    pairs = collected(
        tmp_path,
        function("f", "Add up the rows.")
        + function("g", "Sum of all rows.", spread)
        + function("h", "Add up  the\n    rows.", "Another body, of which there are more than ten words here."),
    )
    collection = merge(pairs)
    assert list(collection.library_of) == [BODY, "Another body, of which there are more than ten words here."]
    assert collection.positives == {
        "Add up the rows.": list(collection.library_of),
        "Sum of all rows.": [BODY],
    }


def test_public_definitions_only_private_files_included(tmp_path):
    source = (
        "class Public:\n"
        f"    {docstring('Class of many rows')}\n"
        "    def method(self):\n"
        f"        {docstring('Method of many rows')}\n"
        "    def _method(self):\n"
        f"        {docstring('Private method of rows')}\n"
        "class _Private:\n"
        f"    {docstring('Private class of rows')}\n"
        "    def method(self):\n"
        f"        {docstring('Method of private class')}\n"
        "try:\n"
        "    async def after():\n"
        f"        {docstring('Function inside a try')}\n"
        "        def inner():\n"
        f"            {docstring('Function inside a function')}\n"
        "except ImportError:\n"
        "    def otherwise():\n"
        f"        {docstring('Function inside an except')}\n"
    )
    (tmp_path / "lib" / "tests").mkdir(parents=True)
    (tmp_path / "lib" / "_module.py").write_text(source)
    (tmp_path / "lib" / "tests" / "module.py").write_text(function("f", "Function of a test"))
    assert [pair.query for pair in collect_pairs({"lib": tmp_path / "lib"})] == [
        "Class of many rows",
        "Method of many rows",
        "Function inside a try",
        "Function inside an except",
    ]


@pytest.mark.parametrize(
    "source", [b"def f(:\n", b"\xff\xfe\x00", b"# -*- coding: no-such -*-\n", b"x = '\x00'\n", b"print 'old'\n"]
)
def test_a_file_that_does_not_parse_is_counted_and_skipped(tmp_path, capsys, source):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "good.py").write_text(function("f", "Add up the rows."))
    (tmp_path / "lib" / "odd.py").write_bytes(source)
    assert [pair.query for pair in collect_pairs({"lib": tmp_path / "lib"})] == ["Add up the rows."]
    assert "1 of 2 source files skipped" in capsys.readouterr().out


def test_a_declared_encoding_and_warnings_in_sources_are_no_trouble(tmp_path, recwarn):
    path = tmp_path / "module.py"
    source = "# -*- coding: latin-1 -*-\nx = '\\d'\n" + function("f", "Über alle Zeilen")
    path.write_bytes(source.encode("latin-1"))
    # In this process: other processes' warnings would not be seen.
    assert [pair.query for pair in demo_data._pairs_of_file("lib", tmp_path, path)] == ["Über alle Zeilen"]
    assert not list(recwarn)


def test_signatures_and_underlines_are_not_text():
    found = split_docstring(f"sum(x, *,\n  dim=None) -> Tensor\n\nAdd up rows.\n\nParameters\n----------\n{BODY}")
    assert found == ("Add up rows.", f"Parameters {BODY}")
    assert split_docstring(f"empty_like(\n  prototype, /)\n--\n\nMake a new array.\n\n{BODY}") == (
        "Make a new array.",
        BODY,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Add up the rows.",
        f"Sum rows.\n\n{BODY}",
        "Add up the rows.\n\nIt is the sum.",
        f"{'word ' * 31}\n\n{BODY}",
        f"Add up the rows.\n\n{BODY} So it is to add up the rows.",
        f"Add up the rows.\n\n.. deprecated:: 1.2\n   {BODY}",
        f"Parameters\n----------\nx : array of rows\n\n{BODY}",
        f"Args:\n    x: all the rows\n\n{BODY}",
        f"labels (`torch.Tensor`, *optional*): the labels\n\n{BODY}",
        f":param x: all the rows\n\n{BODY}",
        f">>> add up rows\n\n{BODY}",
        f"The following rows are added:\n\n{BODY}",
        f"Add up the \ud800 rows.\n\n{BODY}",
    ],
)
def test_what_is_no_question_with_an_answer_gives_no_pair(text):
    assert split_docstring(text) is None
    assert split_docstring(f"Add up the rows.\n\n{BODY}") == ("Add up the rows.", BODY)


def test_boilerplate_shared_by_many_is_left_out():
    def pairs(queries: int, passages: int) -> list[Pair]:
        return [Pair("lib", f"{q}-{p}", f"q{q}", f"p{p}") for q in range(queries) for p in range(passages)]

    most = demo_data.MOST_PARTNERS
    assert len(merge(pairs(most, 1)).positives) == most
    assert merge(pairs(most + 1, 1)) == Collection()
    assert len(merge(pairs(1, most)).positives["q0"]) == most
    assert merge(pairs(1, most + 1)) == Collection()
    assert merge(pairs(1, 1) * 100).positives == {"q0": ["p0"]}, "the same pair a hundred times is one pair"


def test_the_cap_is_shared_evenly_by_libraries_and_takes_their_queries_with_it():
    pairs = [
        Pair(name, f"{name}:{i}", f"query {name} {i}", f"passage {name} {i}")
        for name, count in (("large", 50), ("small", 5), ("middle", 30))
        for i in range(count)
    ]
    chosen = choose(merge(pairs), 35)
    counts = {name: list(chosen.library_of.values()).count(name) for name in ("large", "small", "middle")}
    assert counts == {"large": 15, "small": 5, "middle": 15}
    assert list(chosen.positives) == [passage.replace("passage", "query") for passage in chosen.library_of]
    assert list(chosen.place_of) == list(chosen.library_of)
    assert choose(merge(pairs), 10_000) == merge(pairs)


def test_the_zero_shot_collection_holds_no_text_of_training(tmp_path):
    training = library(tmp_path, "alpha", 12)
    zero_shot = library(tmp_path, "beta", 12)
    (zero_shot / "copied.py").write_text(
        function("f", "Count the rows of alpha 1", "A body of its own, which has more words than ten.")
        + function("g", "Count rows in another way", f"{BODY} This is alpha 4.")
    )
    build_in(tmp_path, {"alpha": training}, {"beta": zero_shot})
    assert len(jsonl(tmp_path / "beir" / "queries.jsonl")) == 12
    assert all("alpha" not in record["text"] for record in jsonl(tmp_path / "beir" / "queries.jsonl"))
    assert all("of its own" not in record["text"] for record in jsonl(tmp_path / "beir" / "corpus.jsonl"))


def test_too_little_text_is_an_error_and_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="too few docstrings"):
        build_in(tmp_path / "out", {"alpha": library(tmp_path, "alpha", 12)}, {"empty": tmp_path / "empty"})
    assert not (tmp_path / "out").exists()


def test_libraries_are_found_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "explosive_library").mkdir()
    (tmp_path / "explosive_library" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_library("explosive_library") == tmp_path / "explosive_library"
    assert (find_library("python") / "argparse.py").is_file()
    with pytest.raises(InputError, match="no_such_library is not installed"):
        find_library("no_such_library")


def test_the_demos_libraries_are_all_installed_and_none_is_on_both_sides():
    assert not set(demo_data.TRAINING_LIBRARIES) & set(demo_data.ZERO_SHOT_LIBRARIES)
    for name in demo_data.TRAINING_LIBRARIES + demo_data.ZERO_SHOT_LIBRARIES:
        assert find_library(name).is_dir()
