"""Prints what training gained: one table over BM25, the initial checkpoint and each episode.

    python evaluate/results_table.py --out_dir results --rows \\
        "BM25=bm25/dev/metrics.json,bm25/zero_shot/metrics.json" "Episode 1=result/ann_ndcg_1,ep1/metrics.json"

A row is LABEL=DEV_METRICS or LABEL=DEV_METRICS,ZERO_SHOT_METRICS: the label ends at the first "=" and may hold
blanks; the files are metrics.json files or, for dev, an episode's result file (ann_ndcg_N). Rows are printed in the
order given, as aligned text; OUT_DIR gets the same as table.md, and as results.json with every measure. Nothing is
computed here: the table can be made again at any time from the files alone.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate.metrics_file import RunMetrics, measure, read_metrics
from utils.arguments import parse, required
from utils.errors import InputError, run
from utils.files import atomic_file, write_json

DEV_MEASURES = {"dev MRR@10": "mrr@10", "dev nDCG@10": "ndcg@10", "dev recall@100": "recall@100"}
ZERO_SHOT_MEASURES = {"zero-shot nDCG@10": "ndcg@10"}


@dataclass
class Arguments:
    rows: list[str] = field(metadata={"help": "the table's rows, each LABEL=DEV_METRICS[,ZERO_SHOT_METRICS]"})
    out_dir: str = required("folder that gets table.md and results.json")


@dataclass(frozen=True)
class Row:
    """A row of the table; `cells` are the values of its columns, None where there is no zero-shot file."""

    label: str
    dev: RunMetrics
    zero_shot: RunMetrics | None
    cells: list[float | None]


def read_row(text: str) -> Row:
    """Reads the files that LABEL=DEV_METRICS[,ZERO_SHOT_METRICS] names."""
    label, equals, files = text.partition("=")
    paths = files.split(",")
    if not (label.strip() and equals and all(paths) and len(paths) <= 2):
        raise InputError(f"the row {text!r} is not LABEL=DEV_METRICS or LABEL=DEV_METRICS,ZERO_SHOT_METRICS")
    dev = read_metrics(paths[0])
    cells: list[float | None] = [measure(dev, name, paths[0]) for name in DEV_MEASURES.values()]
    if len(paths) == 1:
        return Row(label.strip(), dev, None, cells + [None] * len(ZERO_SHOT_MEASURES))
    zero_shot = read_metrics(paths[1])
    cells += [measure(zero_shot, name, paths[1]) for name in ZERO_SHOT_MEASURES.values()]
    return Row(label.strip(), dev, zero_shot, cells)


def table_of(rows: list[Row]) -> list[list[str]]:
    """The table's cells as text, its heading first."""
    heading = ["", *DEV_MEASURES, *ZERO_SHOT_MEASURES]
    return [heading] + [[row.label, *("-" if cell is None else f"{cell:.3f}" for cell in row.cells)] for row in rows]


def plain_text(table: list[list[str]]) -> str:
    """Columns aligned by blanks: labels to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in table
    )
    return "\n".join(lines)


def markdown(table: list[list[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in table]
    lines.insert(1, ["---", *["---:"] * (len(table[0]) - 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def differences(rows: list[Row]) -> list[str]:
    """A line for each column group whose rows were measured on different numbers of queries."""
    found = []
    for name, runs in (("dev", [row.dev for row in rows]), ("zero-shot", [row.zero_shot for row in rows])):
        counts = sorted({metrics.queries for metrics in runs if metrics is not None and metrics.queries is not None})
        if len(counts) > 1:
            found.append(
                f"note: the {name} rows are over {' and '.join(map(str, counts))} queries and cannot be compared; "
                "were they measured on the same collection?"
            )
    return found


def main() -> None:
    args = parse(Arguments, __doc__)
    rows = [read_row(text) for text in args.rows]
    table = table_of(rows)
    with atomic_file(Path(args.out_dir) / "table.md") as handle:
        handle.write(markdown(table))
    content = [
        {"run": row.label, "dev": asdict(row.dev), "zero_shot": row.zero_shot and asdict(row.zero_shot)}
        for row in rows
    ]
    write_json(Path(args.out_dir) / "results.json", {"rows": content})
    print("\n".join([plain_text(table), *differences(rows)]))


if __name__ == "__main__":
    run(main)
