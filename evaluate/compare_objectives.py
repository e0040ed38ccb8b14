"""Compares training objectives: the same start, the same mined negatives, several seeds (commands/run_comparison.sh).

    python evaluate/compare_objectives.py --out_dir OUT --step 100 --objectives \\
        erm=OUT/erm-1,OUT/erm-2 idro+keep=OUT/idro+keep-1,OUT/idro+keep-2

An objective is NAME=RUN_DIR[,RUN_DIR…], the folders of commands/run_ance.sh's runs with a seed each, the same seeds
for all; the first is what the others are compared with. NAME is that of the runs' objective, or any other word.
Prints, for the checkpoint after --step steps, the mean over the seeds of the dev MRR@10, of the worst cluster's or
group's (evaluate/dev_clusters.py; those of the first run) and of the zero-shot nDCG@10 averaged over the collections,
and the lowest and highest seed. Then the differences from the first, whose 95% interval is a bootstrap of both: in
each of 2,000 resamples seeds are drawn with replacement, in pairs of the same seed, and queries within each
collection. The worst cluster is found anew in every resample, among those that are large enough by all queries. So an
interval says what other queries and other seeds might give; not what another collection, start or hyperparameter
would. Few seeds give intervals that are too narrow. Where the checkpoint of a run has collapsed, its objective's
lines say so. OUT gets objectives.md and objectives.json.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import COLLAPSED, read_metrics, read_per_query
from evaluate.reporting.objectives import name_of
from evaluate.reporting.tables import markdown, plain_text
from model.dro import OBJECTIVES
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress
from utils.stores.files import atomic_file, write_json
from utils.stores.run_folder import RunFolder

INITIAL = "initial checkpoint"
RESAMPLES = 2_000
CONFIDENCE = 0.95
DEV_MEASURE, ZERO_SHOT_MEASURE = "mrr@10", "ndcg@10"


@dataclass
class Arguments:
    objectives: list[str] = field(metadata={"help": "NAME=RUN_DIR[,RUN_DIR…], a folder a seed; the baseline first"})
    out_dir: str = required("folder that gets objectives.md and objectives.json")
    step: int = required("the checkpoint that is compared")
    seed: int = option(0, "seed of the resampling")


@dataclass(frozen=True)
class Queries:
    """What all runs are measured on: the judged dev queries by cluster, and each zero-shot set's query ids."""

    dev: DevClusters
    zero_shot: dict[str, list[str]]

    @classmethod
    def of(cls, folder: Path, step: int) -> "Queries":
        """Those that the initial checkpoint and that of `step` were evaluated on in this run."""
        results = folder / "results"
        judged = read_per_query(per_query_file(results / "dev", 0))
        found = (results.glob(f"zero_shot/*/step-{number}/per_query.json") for number in (0, step))
        names = sorted(set.intersection(*({path.parents[1].name for path in paths} for paths in found)))
        return cls(
            DevClusters.read(folder / "ann_data" / "clusters_0", folder / "preprocessed" / "dev-query").only(judged),
            {name: sorted(read_per_query(per_query_file(results / "zero_shot" / name, 0))) for name in names},
        )


@dataclass(frozen=True)
class Values:
    """What an objective reached on each query, float64 (seeds, queries).

    `collapsed`: of some seed and collection they mean nothing, see `evaluate.metrics_file.RunMetrics`.
    """

    dev: np.ndarray
    zero_shot: dict[str, np.ndarray]
    collapsed: bool = False

    @classmethod
    def read(cls, folders: list[Path], step: int, queries: Queries) -> "Values":
        """Reads each run's values a query; `InputError` where a run was measured on other queries than these."""

        collapsed = []

        def read(collection: str, ids: list[str], measure: str) -> np.ndarray:
            files = [per_query_file(folder / "results" / collection, step) for folder in folders]
            values = np.array([_read_values(path, ids, measure) for path in files])
            collapsed.extend(read_metrics(path.with_name("metrics.json")).collapsed for path in files)
            return values

        dev = read("dev", queries.dev.ids, DEV_MEASURE)
        zero_shot = {
            name: read(f"zero_shot/{name}", ids, ZERO_SHOT_MEASURE) for name, ids in queries.zero_shot.items()
        }
        return cls(dev, zero_shot, any(collapsed))


def per_query_file(results: Path, step: int) -> Path:
    """Where commands/run_ance.sh leaves the values a query of the checkpoint after `step` steps."""
    return results / f"step-{step}" / "per_query.json"


def _read_values(path: Path, ids: list[str], measure: str) -> np.ndarray:
    """One measure of these queries, float64 (queries,)."""
    values = read_per_query(path)
    if values.keys() != set(ids):
        raise InputError("is of other queries than the first run's; evaluate all runs on the same ones", path)
    if measure not in values[ids[0]]:
        raise InputError(f"holds no {measure}, only {', '.join(values[ids[0]])}; evaluate again", path)
    return np.array([values[query][measure] for query in ids])


def columns(clusters: DevClusters) -> tuple[str, str, str]:
    """What is compared."""
    return "dev MRR@10", f"worst {clusters.kind} MRR@10", "zero-shot nDCG@10"


def measure(values: Values, clusters: DevClusters, seeds: np.ndarray, chosen: dict[str, np.ndarray]) -> np.ndarray:
    """The `columns` of each of these seeds on the chosen queries (under "" the dev queries'), float64 (seeds, 3)."""
    large = clusters.large(values.dev[0])
    resampled = replace(clusters, assignment=clusters.assignment[chosen[""]])
    rows = []
    for seed in seeds:
        dev = values.dev[seed, chosen[""]]
        zero_shot = [of_set[seed, chosen[name]].mean() for name, of_set in values.zero_shot.items()]
        worst = resampled.worst(dev, large)
        rows.append((dev.mean(), np.nan if worst is None else worst, np.mean(zero_shot) if zero_shot else np.nan))
    return np.array(rows)


def intervals(values: dict[str, Values], clusters: DevClusters, seed: int) -> dict[str, np.ndarray]:
    """The interval of each objective's difference from the first, float64 (3, 2)."""
    generator = np.random.default_rng(seed)
    first = next(iter(values.values()))
    seeds, judged = first.dev.shape
    differences: dict[str, list[np.ndarray]] = {name: [] for name in list(values)[1:]}
    for _ in progress(range(RESAMPLES), unit="resamples", label="compare"):
        chosen = generator.integers(seeds, size=seeds)
        queries = {"": generator.integers(judged, size=judged)} | {
            name: generator.integers(of_set.shape[1], size=of_set.shape[1])
            for name, of_set in first.zero_shot.items()
        }
        baseline = measure(first, clusters, chosen, queries).mean(0)
        for name, found in differences.items():
            found.append(measure(values[name], clusters, chosen, queries).mean(0) - baseline)
    return {
        name: np.array([_middle(column[np.isfinite(column)]) for column in np.array(found).T])
        for name, found in differences.items()
    }


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The ends of the middle `CONFIDENCE` of these values, nan where there are none."""
    tail = 50 * (1 - CONFIDENCE)
    return tuple(np.percentile(values, (tail, 100 - tail))) if len(values) else (np.nan, np.nan)


def as_json(table: np.ndarray) -> list[list[float | None]]:
    """The table's lines, None for nan: there is no such cluster or no zero-shot collection."""
    return [[None if np.isnan(value) else float(value) for value in line] for line in table]


def cell(mean: float, low: float, high: float, form: str = ".3f") -> str:
    """A mean and the ends of its range, "-" where there is nothing to be measured."""
    if np.isnan(mean):
        return "-"
    return f"{mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if low < high else "")


def read_objectives(texts: list[str]) -> dict[str, list[Path]]:
    """Objective → its runs' folders; each objective must have as many."""
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, folders = text.partition("=")
        if not (name and equals and all(folders.split(","))) or name in found:
            raise InputError(f"the objective {text!r} is not NAME=RUN_DIR[,RUN_DIR…], or is given twice")
        if name == INITIAL:
            raise InputError(f"{name!r} is the name of what all begin with; give the objective {text!r} another one")
        found[name] = [Path(folder) for folder in folders.split(",")]
    if len({len(folders) for folders in found.values()}) > 1:
        raise InputError("all objectives must have the same number of runs, with the same seeds in order")
    return found


def check_runs(objectives: dict[str, list[Path]]) -> None:
    """`InputError` where a run's settings are of another objective than its name, or of another seed than its pair's.

    A name that no objective has may be any word, but its runs must have one objective.
    """
    first, expected = next(iter(objectives)), None
    for name, folders in objectives.items():
        runs = [RunFolder(folder) for folder in folders]
        objective = name.lower() if name.lower() in OBJECTIVES else name_of(runs[0])
        for one in runs:
            if name_of(one) != objective:
                raise InputError(f"was trained by {name_of(one)}, and is given as a run of {name}", one.path)
        seeds = [one.setting("SEED") for one in runs]
        expected = expected or seeds
        if seeds != expected or len({*seeds}) < len(seeds):
            raise InputError(
                f"the runs of {name} have the seeds {', '.join(seeds)}, those of {first} {', '.join(expected)}; give "
                "runs of different seeds, the same ones of each objective, in one order"
            )


def main() -> None:
    args = parse(Arguments, __doc__)
    objectives = read_objectives(args.objectives)
    check_runs(objectives)
    start = next(iter(objectives.values()))[0]
    queries = Queries.of(start, args.step)
    clusters = queries.dev
    values = {name: Values.read(folders, args.step, queries) for name, folders in objectives.items()}
    initial = Values.read([start], 0, queries)
    everything = {"": np.arange(initial.dev.shape[1])}
    everything |= {name: np.arange(of_set.shape[1]) for name, of_set in initial.zero_shot.items()}
    of_all = {INITIAL: initial, **values}
    reached = {
        name: measure(of_name, clusters, np.arange(len(of_name.dev)), everything) for name, of_name in of_all.items()
    }
    labels = {name: f"{name} {COLLAPSED}" if of_name.collapsed else name for name, of_name in of_all.items()}
    table = [["", "seeds", *columns(clusters)]]
    for name, found in reached.items():
        cells = map(cell, found.mean(0), found.min(0), found.max(0))
        table.append([labels[name], str(len(found)) if name in values else "", *cells])
    baseline = next(iter(values))
    ends = intervals(values, clusters, args.seed)
    differences = [[f"difference from {labels[baseline]}", *columns(clusters)]]
    for name, interval in ends.items():
        gains = reached[name].mean(0) - reached[baseline].mean(0)
        differences.append(
            [labels[name], *(cell(gain, *of_gain, "+.3f") for gain, of_gain in zip(gains, interval, strict=True))]
        )
    tables = [table, differences] if ends else [table]
    with atomic_file(Path(args.out_dir) / "objectives.md") as handle:
        handle.write("\n".join(map(markdown, tables)))
    content = {
        "columns": columns(clusters),
        "reached": {name: as_json(found) for name, found in reached.items()},
        "collapsed": [name for name, of_name in of_all.items() if of_name.collapsed],
        "baseline": baseline,
        "intervals": {name: as_json(interval) for name, interval in ends.items()},
    }
    write_json(Path(args.out_dir) / "objectives.json", content)
    print("\n\n".join(map(plain_text, tables)))


if __name__ == "__main__":
    run(main)
