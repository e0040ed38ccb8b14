"""The result of a collection that is evaluated in parts: the mean over them, as for CQADupStack's 12 forums.

    python evaluate/mean_of_parts.py --out_dir RESULTS/cqadupstack --parts RESULTS/cqadupstack/*/metrics.json

Writes RESULTS/cqadupstack/metrics.json, with the parts' own files beside it. Each part counts alike, however many
queries it has. Of a collection that BEIR publishes in parts, all must be there; --check_only sees to that by the
folders' names, before hours are spent on evaluating them.
"""

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.beir_sets import find_set
from evaluate.metrics_file import RunMetrics, read_metrics, write_metrics
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say


@dataclass
class Arguments:
    out_dir: str = required("where metrics.json goes")
    parts: list[str] = field(metadata={"help": "metrics.json of each part"})
    collection: str = option("", "name of the collection in the result (default: OUT_DIR's name)")
    check_only: bool = option(False, "read and write nothing; see whether these are the parts")

    def __post_init__(self) -> None:
        self.collection = self.collection or Path(self.out_dir).resolve().name


def check_parts(collection: str, found: set[str]) -> None:
    """`InputError` where BEIR publishes the collection in other parts than these."""
    wanted = set(find_set(collection).parts)
    if wanted and found != wanted:
        missing, unknown = (", ".join(sorted(names)) or "none" for names in (wanted - found, found - wanted))
        raise InputError(f"{collection} is a mean over {len(wanted)} parts; missing: {missing}; unknown: {unknown}")


def mean_of_parts(parts: dict[str, RunMetrics], collection: str) -> RunMetrics:
    """The mean of each measure over the parts, which are given by their files, relative to the mean's own.

    Raises `InputError` where the parts are of several runs, or not those that BEIR's collection has.
    """
    runs = {(part.run, part.checkpoint) for part in parts.values()}
    if len(runs) > 1:
        raise InputError(f"{collection}: the parts are of several runs: {', '.join(sorted(run for run, _ in runs))}")
    check_parts(collection, {part.collection for part in parts.values()})
    measures = set.intersection(*(set(part.metrics) for part in parts.values()))
    first = next(iter(parts.values()))
    queries, published = sum(part.queries for part in parts.values()), find_set(collection).queries
    if published and queries != published:
        say(f"warning: {collection} has {queries:,} judged queries, and BEIR's {published:,}: do not compare figures")
    return RunMetrics(
        first.run,
        collection,
        first.checkpoint,
        queries,
        {
            name: math.fsum(part.metrics[name] for part in parts.values()) / len(parts)
            for name in first.metrics
            if name in measures
        },
        list(parts),
        any(part.collapsed for part in parts.values()),
    )


def main() -> None:
    args = parse(Arguments, __doc__)
    if args.check_only:
        check_parts(args.collection, {Path(path).resolve().parent.name for path in args.parts})
        return
    out = Path(args.out_dir).resolve()
    parts = {os.path.relpath(Path(path).resolve(), out): read_metrics(path) for path in args.parts}
    metrics = mean_of_parts(parts, args.collection)
    write_metrics(out / "metrics.json", metrics)
    print(metrics.line(), flush=True)


if __name__ == "__main__":
    run(main)
