"""Qrels files as they are found in the wild."""

from pathlib import Path

import pytest

from data.judgments import iter_judgments, read_split
from utils.runtime.errors import InputError

HEADER = "query-id\tcorpus-id\tscore\n"


def judged(qrels: Path) -> dict[str, dict[str, int]]:
    """Query → passage → grade."""
    found: dict[str, dict[str, int]] = {}
    for _, query, passage, grade in iter_judgments(qrels):
        found.setdefault(query, {})[passage] = grade
    return found


@pytest.fixture
def qrels(tmp_path) -> Path:
    return tmp_path / "test.tsv"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n", "\r\n\r\n", "\n \t\n"])
@pytest.mark.parametrize("header", ["", HEADER])
def test_blank_lines_at_the_end_say_nothing(qrels, header, end):
    qrels.write_bytes(f"{header}q1\td1\t1\nq1\td2\t0{end}".encode())
    assert judged(qrels) == {"q1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize(
    ("content", "line"),
    [("\nq1\td1\t1\n", 1), ("q1\td1\t1\n\n\nq2\td2\t1\n", 2), (f"{HEADER} \nq1\td1\t1\n\n", 2)],
)
def test_a_blank_line_before_a_judgment_is_named_with_the_cure(qrels, content, line):
    qrels.write_text(content)
    with pytest.raises(InputError, match=rf"test\.tsv:{line}: the line is blank .* remove this one"):
        judged(qrels)


@pytest.mark.parametrize("content", ["\n\n", HEADER + "\n"])
def test_blank_lines_alone_are_no_judgments(qrels, content):
    qrels.write_text(content)
    with pytest.raises(InputError, match=r"no judgment|blank lines only"):
        read_split("test", lambda: [(1, "q1", "why")], qrels.with_name("queries"), qrels)


LINES = [("q1", "d1", "1"), ("q1", "d2", "0"), ("q2", "d1", "-1")]
FOUND = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": -1}}


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize(
    "header",
    [
        *((), ("query-id", "corpus-id", "score"), ("qid", "pid", "rel")),
        *(("query-id", "iteration", "corpus-id", "relevance"), ("query", "Q0", "document", "label")),
        ("topic", "0", "doc", "grade"),
    ],
)
def test_either_layout_may_have_a_header(qrels, header, separator):
    lines = [line if len(header) == 3 else (line[0], "0", *line[1:]) for line in LINES]
    qrels.write_text("".join(f"{separator.join(line)}\n" for line in [header, *lines] if line))
    assert judged(qrels) == FOUND


@pytest.mark.parametrize("end", [".0", ".", ".000"])
def test_whole_grades_may_be_written_as_decimals(qrels, end):
    qrels.write_text("".join(f"{query}\t0\t{passage}\t{grade}{end}\n" for query, passage, grade in LINES))
    assert judged(qrels) == FOUND


@pytest.mark.parametrize("grade", ["0.5", "1.5", "-0.25", ".5", "2.0001"])
def test_grades_between_whole_numbers_are_refused_with_the_reason(qrels, grade):
    qrels.write_text(f"q1\td1\t1\nq2\td2\t{grade}\n")
    with pytest.raises(
        InputError, match=rf"tsv:2: the relevance is {grade}, and trec_eval's measures.*whole numbers"
    ):
        judged(qrels)


@pytest.mark.parametrize(
    "grade", ["1_0", "\u0661", "1e3", "nan", "inf", "0x1", "99999999999", "99999999999.0", "high1"]
)
def test_anything_else_is_no_grade(qrels, grade):
    qrels.write_text(f"q1\td1\t{grade}\n")
    with pytest.raises(InputError, match=r"tsv:1: the relevance must be a whole number of at most 31 bits"):
        judged(qrels)
