"""Qrels files as they are found in the wild."""

from pathlib import Path

import pytest

from data.judgments import read_judgments
from utils.errors import InputError

HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def qrels(tmp_path) -> Path:
    return tmp_path / "test.tsv"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n", "\r\n\r\n", "\n \t\n"])
@pytest.mark.parametrize("header", ["", HEADER])
def test_blank_lines_at_the_end_say_nothing(qrels, header, end):
    qrels.write_bytes(f"{header}q1\td1\t1\nq1\td2\t0{end}".encode())
    assert read_judgments(qrels) == {"q1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize(
    ("content", "line"),
    [("\nq1\td1\t1\n", 1), ("q1\td1\t1\n\n\nq2\td2\t1\n", 2), (f"{HEADER} \nq1\td1\t1\n\n", 2)],
)
def test_a_blank_line_before_a_judgment_is_named_with_the_cure(qrels, content, line):
    qrels.write_text(content)
    with pytest.raises(InputError, match=rf"test\.tsv:{line}: the line is blank .* remove this one"):
        read_judgments(qrels)


@pytest.mark.parametrize("content", ["\n\n", HEADER + "\n"])
def test_blank_lines_alone_are_no_judgments(qrels, content):
    qrels.write_text(content)
    with pytest.raises(InputError, match="no judgment"):
        read_judgments(qrels)
