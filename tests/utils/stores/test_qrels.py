"""Judgments by row: what is written is what is read, and what does not belong to the stores is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_models import random_store
from utils.runtime.errors import InputError
from utils.stores.qrels import (
    Qrels,
    check_positives,
    read_qrels,
    read_train_and_dev_qrels,
    say_missing,
    write_qrels,
)

judgment_lists = st.dictionaries(
    st.tuples(st.integers(0, 9), st.integers(0, 19)), st.integers(-2, 4), min_size=1, max_size=40
).map(lambda grades: [(query, passage, grade) for (query, passage), grade in grades.items()])


@given(judgment_lists)
def test_judgments_come_back_sorted_whatever_the_order_they_were_written_in(tmp_path_factory, judgments):
    path = tmp_path_factory.mktemp("qrels") / "dev-qrel.tsv"
    write_qrels(path, Qrels.of(judgments))
    qrels = read_qrels(path, 10, 20)
    assert list(zip(qrels.query_rows, qrels.passage_rows, qrels.relevance, strict=True)) == sorted(judgments)
    assert {column.dtype for column in (qrels.query_rows, qrels.passage_rows, qrels.relevance)} == {np.dtype("int64")}
    assert len(qrels) == len(judgments)


@given(judgment_lists)
def test_positives_are_all_passages_of_a_grade_above_0(judgments):
    columns = np.array(sorted(judgments), dtype=np.int64).T
    positives = Qrels(*columns).positives
    expected: dict[int, list[int]] = {}
    for query, passage, grade in sorted(judgments):
        if grade > 0:
            expected.setdefault(query, []).append(passage)
    assert {query: rows.tolist() for query, rows in positives.items()} == expected


def test_a_file_is_written_in_ascending_order_and_one_in_any_other_is_read_sorted(tmp_path):
    path = tmp_path / "qrel.tsv"
    write_qrels(path, Qrels.of(iter([(10, 1, 1), (2, 10, 1), (2, 9, 0)])))
    assert path.read_text() == "2\t9\t0\n2\t10\t1\n10\t1\t1\n"
    path.write_text("2\t10\t1\n10\t1\t1\n2\t9\t0\n")
    qrels = read_qrels(path, 11, 11)
    assert qrels.query_rows.tolist() == [2, 2, 10]
    assert qrels.passage_rows.tolist() == [9, 10, 1]
    assert qrels.relevance.tolist() == [0, 1, 1]


def test_several_positives_and_grades_other_than_1_are_kept(tmp_path):
    write_qrels(tmp_path / "qrel.tsv", Qrels.of([(0, 5, 3), (0, 2, 1), (0, 9, 0), (2, 1, 2)]))
    positives = read_qrels(tmp_path / "qrel.tsv", 3, 10).positives
    assert {query: rows.tolist() for query, rows in positives.items()} == {0: [2, 5], 2: [1]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\t1", ":2: expected 3 fields"),
        ("0\tD12\t1", ":2: expected three whole numbers"),
        ("0\t1\t0.5", ":2: expected three whole numbers"),
        ("3\t1\t1", ":2: query row 3"),
        ("0\t5\t1", ":2: query row 0 or passage row 5 is outside"),
        ("-1\t1\t1", ":2: query row -1"),
        ("2\t4\t0", "judges a query and passage twice"),
    ],
)
def test_a_line_that_does_not_belong_is_named(tmp_path, line, message):
    path = tmp_path / "qrel.tsv"
    path.write_text(f"2\t4\t1\n{line}\n")
    with pytest.raises(InputError, match=message) as raised:
        read_qrels(path, 3, 5)
    assert str(raised.value).startswith(str(path))


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    (tmp_path / "empty.tsv").touch()
    for name, message in (("none.tsv", "no such file"), ("empty.tsv", "empty")):
        with pytest.raises(InputError, match=message):
            read_qrels(tmp_path / name, 1, 1)


def test_a_query_without_a_relevant_passage_is_named():
    judged = [(0, 3, 1), (1, 3, 0), (2, 5, 1)]
    for query_count, message in ((3, "1 of 3 .* query row 1 the first"), (5, "3 of 5 .* query row 1 the first")):
        with pytest.raises(InputError, match=rf"train-qrel\.tsv: {message}"):
            check_positives(Qrels(*np.array(judged).T), query_count, "train-qrel.tsv")
    check_positives(Qrels(*np.array([*judged, (1, 4, 1)]).T), 3, "train-qrel.tsv")


def test_every_training_query_must_have_a_relevant_passage_and_a_dev_query_need_not(tmp_path):
    for name, rows in (("train-query", 2), ("dev-query", 3), ("passages", 4)):
        random_store(tmp_path / name, rows)
    write_qrels(tmp_path / "train-qrel.tsv", Qrels.of([(0, 3, 1), (1, 0, 1)]))
    write_qrels(tmp_path / "dev-qrel.tsv", Qrels.of([(2, 1, 1)]))
    train, dev = read_train_and_dev_qrels(tmp_path)
    assert (train.query_rows.tolist(), dev.query_rows.tolist()) == ([0, 1], [2])
    write_qrels(tmp_path / "train-qrel.tsv", Qrels.of([(0, 3, 1)]))
    with pytest.raises(InputError, match=r"train-qrel\.tsv: 1 of 2"):
        read_train_and_dev_qrels(tmp_path)


def test_how_many_judgments_are_of_missing_passages_is_said(capsys):
    say_missing(Qrels.of([(0, 1, 1), (0, 2, 0), (1, 0, 1)]), 2, "dev")
    assert capsys.readouterr().out == ""
    say_missing(Qrels.of([(0, 1, 1), (0, 2, 1), (1, 3, 2), (1, 0, 0)]), 2, "dev")
    said = capsys.readouterr().out
    assert "dev: the collection lacks the passages of 2 of 3 relevant judgments" in said
    assert "and 1 of 2 queries, which have no others, with 0" in said
