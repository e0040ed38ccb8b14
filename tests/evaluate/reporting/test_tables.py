"""Tables as text."""

from evaluate.reporting.tables import markdown, plain_text

TABLE = [["", "mean"], ["a|b", "0.5"], ["long \x1b[31m\nname", "10.25"]]


def test_columns_are_aligned_and_nothing_in_a_name_steers_the_terminal():
    assert plain_text(TABLE).splitlines() == [
        "                     mean",
        "a|b                   0.5",
        "long \\x1b[31m name  10.25",
    ]


def test_nothing_in_a_name_breaks_a_markdown_table():
    assert markdown(TABLE).splitlines() == [
        "|  | mean |",
        "| --- | ---: |",
        r"| a\|b | 0.5 |",
        r"| long \x1b[31m name | 10.25 |",
    ]
    assert markdown(TABLE, numbers=False).splitlines()[1] == "| --- | --- |"
