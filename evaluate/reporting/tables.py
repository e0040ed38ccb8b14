"""Tables as text: rows of cells, the heading first. Names in them may come from anybody's collection."""

from utils.runtime.plain_text import printable


def plain_text(table: list[list[str]]) -> str:
    """Columns aligned by blanks: labels to the left, numbers to the right."""
    rows = [list(map(printable, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(lines)


def markdown(table: list[list[str]], numbers: bool = True) -> str:
    """A Markdown table; the columns after the first stand to the right where they are `numbers`."""
    heading, *rows = ([printable(cell).replace("|", "\\|") for cell in row] for row in table)
    rule = ["---", *["---:" if numbers else "---"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *rows))
