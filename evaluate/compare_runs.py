"""Compares runs over collections: one table of a measure, and whether the differences could be chance.

    python evaluate/compare_runs.py --out_dir RESULTS --runs \\
        "BM25=bm25/scifact/metrics.json,bm25/arguana/metrics.json" \\
        "after episode 3=ep3/scifact/metrics.json,ep3/arguana/metrics.json"

A run is LABEL=METRICS[,METRICS…]: a collection's metrics.json of evaluate/evaluate_beir.py, evaluate/bm25.py or
evaluate/mean_of_parts.py, with the per_query.json that lies beside it. A "-" stands for a collection on which the run
has none, as BM25 may; then there is no difference there, and no mean of that run.

The first run is the baseline: every other one is compared with it on each collection and on the mean over all of
them, with a 95% bootstrap interval of the difference and the p-value of a paired randomisation test, which is
corrected (Holm) for all the tests of the table together (evaluate/significance.py). A run whose checkpoint has
collapsed on one of the collections says so. Prints the tables; RESULTS gets the same as comparison.md, and as
comparison.json.
"""

import math
import sys
from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evaluate.metrics_file import COLLAPSED, read_metrics, read_per_query
from evaluate.reporting.tables import markdown, plain_text
from evaluate.significance import Difference, Parts, compare, holm, mean_of_means
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.stores.files import atomic_file, read_json, write_json

MEAN = "mean"
NONE = "-"  # in the place of a file


@dataclass
class Arguments:
    runs: list[str] = field(metadata={"help": "LABEL=METRICS[,METRICS…], a file a collection; the baseline first"})
    out_dir: str = required("folder that gets comparison.md and comparison.json")
    measure: str = option("ndcg@10", "what is compared")
    apart: int = option(0, "the first so many collections do not count in the mean (those that were trained on)")
    seed: int = option(0, "seed of the resampling")


@dataclass(frozen=True)
class Collection:
    """A run's values on one collection: of each part by query id. Nearly all collections are one part.

    `collapsed`: they mean nothing, see `evaluate.metrics_file.RunMetrics`.
    """

    name: str
    path: Path
    parts: dict[str, dict[str, float]]
    collapsed: bool

    @classmethod
    def read(cls, path: Path, measure: str) -> "Collection":
        """What lies beside this metrics.json."""
        metrics = read_metrics(path)
        files = [path.parent / part for part in metrics.parts] or [path]
        parts = dict(_part(file, measure) for file in files)
        return cls(metrics.collection, path, parts, metrics.collapsed)

    def in_order_of(self, other: "Collection") -> list[np.ndarray]:
        """The values of each part in the order of the other's queries; `InputError` where those differ."""
        if self.name != other.name:
            raise InputError(f"is of {self.name}, and the baseline's file in that place of {other.name}", self.path)
        same_parts = self.parts.keys() == other.parts.keys()
        if not same_parts or any(self.parts[name].keys() != values.keys() for name, values in other.parts.items()):
            raise InputError(f"has not the queries of {other.path}; evaluate both runs on the same ones", self.path)
        return [np.array([self.parts[name][query] for query in values]) for name, values in other.parts.items()]


def _part(path: Path, measure: str) -> tuple[str, dict[str, float]]:
    """The collection's name and one measure a query, from a metrics.json and the per_query.json beside it."""
    metrics, path = read_metrics(path), path.with_name("per_query.json")
    values = read_per_query(path)
    measures = next(iter(values.values())).keys()
    if measure not in measures:
        raise InputError(f"holds no {measure}, only {', '.join(measures)}; evaluate again", path)
    found = {query: of_query[measure] for query, of_query in values.items()}
    mean = math.fsum(found.values()) / len(found)
    whole = metrics.metrics.get(measure, math.nan)
    if not math.isclose(mean, whole, abs_tol=1e-6):
        raise InputError(
            f"its mean {measure} is {mean:.6f}, and {whole:.6f} in metrics.json beside it: they are of two "
            "evaluations; evaluate again",
            path,
        )
    return metrics.collection, found


def read_run(text: str, measure: str) -> tuple[str, list[Collection | None]]:
    """The label and the collections of LABEL=METRICS[,METRICS…], None for `NONE`."""
    label, equals, files = text.partition("=")
    paths = files.split(",")
    if not (label.strip() and equals and all(paths)):
        raise InputError(f"the run {text!r} is not LABEL=METRICS or LABEL=METRICS,METRICS…")
    return label.strip(), [None if path == NONE else Collection.read(Path(path), measure) for path in paths]


def read_runs(
    texts: list[str], measure: str
) -> tuple[list[str], dict[str, list[Parts | None]], dict[str, list[str]]]:
    """The collections' names; each run's values on each of them, in one order of parts and queries; what collapsed.

    The values are None where a run has none on a collection. The last are the collections, by run, on which its
    checkpoint has collapsed; runs without any are not there.
    """
    runs = dict(read_run(text, measure) for text in texts)
    if len(runs) < len(texts):
        raise InputError("two runs have the same label; give each its own")
    count = len(next(iter(runs.values())))
    for label, collections in runs.items():
        if len(collections) != count:
            raise InputError(f"the run {label!r} names {len(collections)} files, and the baseline {count}")
    first = [next(filter(None, of_runs), None) for of_runs in zip(*runs.values(), strict=True)]
    if None in first:
        raise InputError(f"no run has metrics on collection {first.index(None) + 1}; leave it out")
    names: list[str] = []
    for collection in first:
        number, same = 2, collection.name
        while same in (*names, MEAN):  # a zero-shot collection may be called dev
            number, same = number + 1, f"{collection.name} ({number})"
        names.append(same)
    values = {
        label: [own and own.in_order_of(other) for own, other in zip(collections, first, strict=True)]
        for label, collections in runs.items()
    }
    collapsed = {
        label: [name for name, own in zip(names, collections, strict=True) if own and own.collapsed]
        for label, collections in runs.items()
    }
    return names, values, {label: found for label, found in collapsed.items() if found}


def marked(label: str, collapsed: Container[str]) -> str:
    """A run's label as it stands in tables: with `COLLAPSED` where it is among the `collapsed` ones."""
    return f"{label} {COLLAPSED}" if label in collapsed else label


def compare_all(
    names: list[str], runs: dict[str, list[Parts | None]], seed: int, apart: int = 0
) -> dict[str, dict[str, Difference]]:
    """Label → collection (of several also `MEAN`) → its difference from the first run, with corrected p-values.

    Without those of which one of the two runs has no values.
    """
    baseline, *others = runs
    selections = {name: slice(i, i + 1) for i, name in enumerate(names)}
    if len(names) - apart > 1:
        selections[MEAN] = slice(apart, None)
    found = {
        (label, name): compare(runs[baseline][chosen], runs[label][chosen], seed)
        for label in others
        for name, chosen in selections.items()
        if None not in (*runs[baseline][chosen], *runs[label][chosen])
    }
    corrected = holm([difference.p for difference in found.values()])
    differences: dict[str, dict[str, Difference]] = {label: {} for label in others}
    for ((label, name), difference), p in zip(found.items(), corrected, strict=True):
        differences[label][name] = replace(difference, p=p)
    return differences


def means_table(
    measure: str,
    names: list[str],
    runs: dict[str, list[Parts | None]],
    apart: int = 0,
    collapsed: Container[str] = (),
) -> list[list[str]]:
    """A row a collection, and of several one of their mean; a column a run, "-" where it lacks values."""

    def cell(collections: list[Parts | None]) -> str:
        return "-" if None in collections else f"{mean_of_means(collections):.3f}"

    counts = [sum(map(len, next(filter(None, of_runs)))) for of_runs in zip(*runs.values(), strict=True)]
    rows = [
        [name, f"{count:,}", *(cell(collections[i : i + 1]) for collections in runs.values())]
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    if len(names) - apart > 1:
        rows.append([MEAN, f"{sum(counts[apart:]):,}", *(cell(collections[apart:]) for collections in runs.values())])
    return [[measure, "queries", *(marked(label, collapsed) for label in runs)], *rows]


def differences_table(
    baseline: str, differences: dict[str, dict[str, Difference]], collapsed: Container[str] = ()
) -> list[list[str]]:
    """A row a run and collection."""
    return [[f"difference from {marked(baseline, collapsed)}", "on", "mean", "95% interval", "p (Holm)"]] + [
        [marked(label, collapsed), name, f"{d.mean:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", f"{d.p:.4f}"]
        for label, of_run in differences.items()
        for name, d in of_run.items()
    ]


@dataclass(frozen=True)
class Comparison:
    """comparison.json: `differences` from the `baseline` in one measure, label → collection → `Difference`.

    `collapsed`: label → the collections on which the run's checkpoint has collapsed.
    """

    measure: str
    baseline: str
    differences: dict[str, dict[str, Difference]]
    collapsed: dict[str, list[str]] = field(default_factory=dict)

    def marked(self, label: str) -> str:
        """The label as it stands in tables."""
        return marked(label, self.collapsed)


def read_comparison(path: Path) -> Comparison:
    """What `main` wrote; `InputError` where it is missing or of another form."""
    content = read_json(path)
    try:
        differences = {
            label: {
                name: Difference(**{key: float(value) for key, value in of.items()}) for name, of in found.items()
            }
            for label, found in content["differences"].items()
        }
        collapsed = {label: [*map(str, names)] for label, names in content.get("collapsed", {}).items()}
        return Comparison(str(content["measure"]), str(content["baseline"]), differences, collapsed)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"is not what evaluate/compare_runs.py writes ({error}); make it again", path) from None


def main() -> None:
    args = parse(Arguments, __doc__)
    names, runs, collapsed = read_runs(args.runs, args.measure)
    if not 0 <= args.apart <= len(names):
        raise InputError(f"--apart is {args.apart}, and the runs name {len(names)} collections")
    baseline, differences = next(iter(runs)), compare_all(names, runs, args.seed, args.apart)
    tables = [means_table(args.measure, names, runs, args.apart, collapsed)]
    if any(differences.values()):
        tables.append(differences_table(baseline, differences, collapsed))
    with atomic_file(Path(args.out_dir) / "comparison.md") as handle:
        handle.write("\n".join(map(markdown, tables)))
    content = {
        "measure": args.measure,
        "baseline": baseline,
        "means": {
            label: {name: mean_of_means([parts]) for name, parts in zip(names, collections, strict=True) if parts}
            for label, collections in runs.items()
        },
        "differences": {label: {name: asdict(d) for name, d in of.items()} for label, of in differences.items()},
        "collapsed": collapsed,
    }
    write_json(Path(args.out_dir) / "comparison.json", content)
    print("\n\n".join(map(plain_text, tables)))


if __name__ == "__main__":
    run(main)
