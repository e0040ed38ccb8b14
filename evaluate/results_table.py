"""Prints what training gained: one table over BM25, the initial checkpoint and each episode.

    python evaluate/results_table.py --out_dir RESULTS --rows \\
        "BM25=bm25/dev/metrics.json,bm25/cisi/metrics.json" "Episode 1=ep1/dev/metrics.json,ep1/cisi/metrics.json"

A row is LABEL=DEV_METRICS[,ZERO_SHOT_METRICS…]: the label ends at the first "=" and may hold blanks; the first file
is the dev metrics, and the zero-shot column is the mean over the collections of the others ("-" where there is none),
as BEIR's averages are. With --test, the second file is of the training collection's own test queries, which get a
column of their own under its name. The row of a checkpoint that has collapsed says so. Rows are printed in the order
given, as aligned text; RESULTS gets the same as table.md, and as results.json with every measure of every file.
Nothing is measured here: the table can be made again at any time.

With --clusters_dir, the clusters of a mined episode, there is a column for the worst cluster of dev queries: the
lowest mean of those that hold at least 10 judged dev queries. All rows are measured on the same clusters, BM25's too;
results.json gets the mean of each. Where they are groups by name, the column is the worst group's, results.json gets
the dev measures of each group by its name, and a second table has the dev MRR@10 of each, the largest first.
"""

import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate.dev_clusters import LEAST_QUERIES, DevClusters
from evaluate.metrics_file import COLLAPSED, RunMetrics, measure, read_metrics, read_per_query
from evaluate.reporting.tables import markdown, plain_text
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.stores.files import atomic_file, write_json

DEV_MEASURES = {"dev MRR@10": "mrr@10", "dev nDCG@10": "ndcg@10", "dev recall@100": "recall@100"}
CLUSTER_MEASURE = "mrr@10"
FEW_QUERIES = 100  # with fewer dev queries, the table says so
SHOWN_GROUPS = 20  # lines of the printed table of groups by name; table.md has all
TEST_MEASURE = "ndcg@10"
ZERO_SHOT_MEASURES = {"zero-shot nDCG@10": "ndcg@10"}


@dataclass
class Arguments:
    rows: list[str] = field(metadata={"help": "the table's rows, each LABEL=DEV_METRICS[,ZERO_SHOT_METRICS…]"})
    out_dir: str = required("folder that gets table.md and results.json")
    clusters_dir: str = option("", "clusters_N of a mined episode: adds the worst cluster or group of dev queries")
    test: bool = option(False, "the second file of a row is of the training collection's own test queries")
    dev_query_dir: str = option("", "token store of the dev queries, for their ids; wanted with clusters_dir")

    def __post_init__(self) -> None:
        if bool(self.clusters_dir) != bool(self.dev_query_dir):
            raise InputError("--clusters_dir and --dev_query_dir are wanted together")


@dataclass(frozen=True)
class Row:
    """A row of the table; `cells` are the values of its columns, None where there is no file. `test` as in --test.

    `cluster_means` is the dev measure of each cluster, None where it has no judged query; empty without clusters.
    Of groups by name, `group_means` are the `DEV_MEASURES` of each, and `group_queries` its judged queries.
    """

    label: str
    dev: RunMetrics
    test: RunMetrics | None
    zero_shot: list[RunMetrics]
    cells: list[float | None]
    cluster_means: list[float | None]
    group_means: dict[str, dict[str, float | None]] = field(default_factory=dict)
    group_queries: dict[str, int] = field(default_factory=dict)


def read_row(text: str, clusters: DevClusters | None = None, has_test: bool = False) -> Row:
    """Reads the files that LABEL=DEV_METRICS[,ZERO_SHOT_METRICS…] names; `has_test` as --test says."""
    label, equals, files = text.partition("=")
    paths = files.split(",")
    if not (label.strip() and equals and all(paths)):
        raise InputError(f"the row {text!r} is not LABEL=DEV_METRICS or LABEL=DEV_METRICS,ZERO_SHOT_METRICS…")
    dev, *others = map(read_metrics, paths)
    test, zero_shot = (others[0], others[1:]) if has_test and others else (None, others)
    cells: list[float | None] = [measure(dev, name, paths[0]) for name in DEV_MEASURES.values()]
    if has_test:
        cells.append(measure(test, TEST_MEASURE, paths[1]) if test else None)
    for name in ZERO_SHOT_MEASURES.values():
        files_of = zip(zero_shot, paths[len(paths) - len(zero_shot) :], strict=True)
        values = [measure(metrics, name, path) for metrics, path in files_of]
        cells.append(math.fsum(values) / len(values) if values else None)
    means: list[float | None] = []
    group_means: dict[str, dict[str, float | None]] = {}
    group_queries: dict[str, int] = {}
    if clusters:
        per_query = read_per_query(Path(paths[0]).with_name("per_query.json"))
        values = clusters.values(per_query, CLUSTER_MEASURE)
        means = clusters.means(values)
        cells.insert(len(DEV_MEASURES), clusters.worst(values))
        if clusters.names:
            of_measures = [clusters.means(clusters.values(per_query, name)) for name in DEV_MEASURES.values()]
            for group, *found in zip(clusters.names, *of_measures, strict=True):
                group_means[group] = dict(zip(DEV_MEASURES.values(), found, strict=True))
            group_queries = dict(zip(clusters.names, clusters.judged(values).tolist(), strict=True))
    collapsed = f" {COLLAPSED}" if any(metrics.collapsed for metrics in (dev, *others)) else ""
    return Row(f"{label.strip()}{collapsed}", dev, test, zero_shot, cells, means, group_means, group_queries)


def table_of(rows: list[Row]) -> list[list[str]]:
    """The table's cells as text, its heading first."""
    kind = "group" if any(row.group_means for row in rows) else "cluster"
    clusters = [f"worst {kind} {CLUSTER_MEASURE.upper()}"] if any(row.cluster_means for row in rows) else []
    test = [f"{row.test.collection} test nDCG@10" for row in rows if row.test][:1]
    heading = ["", *DEV_MEASURES, *clusters, *test, *ZERO_SHOT_MEASURES]
    return [heading] + [[row.label, *map(_cell, row.cells)] for row in rows]


def table_of_groups(rows: list[Row]) -> list[list[str]]:
    """The dev measure of each group by name, a line a group, those with most judged queries first; its heading first.

    The judged queries are the last row's.
    """
    queries = rows[-1].group_queries
    heading = [f"dev {CLUSTER_MEASURE.upper()} by group", "queries", *(row.label for row in rows)]
    return [heading] + [
        [group, f"{queries[group]:,}", *(_cell(row.group_means[group][CLUSTER_MEASURE]) for row in rows)]
        for group in sorted(queries, key=lambda group: -queries[group])
    ]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def differences(rows: list[Row]) -> list[str]:
    """A line for each group of columns whose rows were measured on different numbers of queries."""
    measured_on = {
        "dev": [[row.dev] for row in rows],
        "test": [[row.test] for row in rows if row.test],
        "zero-shot": [row.zero_shot for row in rows if row.zero_shot],
    }
    notes = []
    for name, runs in measured_on.items():
        counts = {" + ".join(f"{metrics.queries:,}" for metrics in each) for each in runs}
        if len(counts) > 1:
            found = " or ".join(sorted(counts))
            notes.append(
                f"note: not all rows were measured on the same {name} queries ({found}): do not compare them"
            )
    return notes


def cautions(rows: list[Row]) -> list[str]:
    """A line where there are few dev queries, and one where so few that no cluster has a measure."""
    queries, cells = rows[-1].dev.queries, rows[-1].cells
    kind = "group" if rows[-1].group_means else "cluster"
    notes = []
    if queries < FEW_QUERIES:
        notes.append(f"note: {queries} dev queries are few: one of them can move a mean by {1 / queries:.3f}")
    if rows[-1].cluster_means and cells[len(DEV_MEASURES)] is None:
        notes.append(f"note: no {kind} has {LEAST_QUERIES} judged dev queries, so none counts as the worst")
    return notes


def main() -> None:
    args = parse(Arguments, __doc__)
    clusters = DevClusters.read(args.clusters_dir, args.dev_query_dir) if args.clusters_dir else None
    rows = [read_row(text, clusters, args.test) for text in args.rows]
    if args.test and not any(row.test for row in rows):
        raise InputError("--test says that the second file of a row is of test queries, and no row has two")
    table, by_group = table_of(rows), []
    if clusters and clusters.names:
        by_group = table_of_groups(rows)
    with atomic_file(Path(args.out_dir) / "table.md") as handle:
        handle.write("\n".join(map(markdown, [table, by_group] if by_group else [table])))
    content = [
        {
            "run": row.label,
            "cells": row.cells,
            "dev": asdict(row.dev),
            "test": asdict(row.test) if row.test else None,
            "zero_shot": [asdict(metrics) for metrics in row.zero_shot],
            "cluster_means": row.cluster_means,
        }
        | ({"group_means": row.group_means, "group_queries": row.group_queries} if row.group_means else {})
        for row in rows
    ]
    write_json(Path(args.out_dir) / "results.json", {"columns": table[0][1:], "rows": content})
    print("\n".join([plain_text(table), *differences(rows), *cautions(rows)]))
    if by_group:
        print(f"\n{plain_text(by_group[: SHOWN_GROUPS + 1])}")
        if (hidden := len(by_group) - 1 - SHOWN_GROUPS) > 0:
            print(f"and {hidden:,} smaller groups: {Path(args.out_dir, 'table.md')}")


if __name__ == "__main__":
    run(main)
