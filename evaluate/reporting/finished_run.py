"""What a run of commands/run_ance.sh left on the disk that its report shows, as plain arrays. Nothing is measured."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.directory_watcher import DirectoryDeletedError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.layouts.beir import read_jsonl
from data.layouts.msmarco import read_tsv
from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import read_metrics, read_per_query
from utils.mining.clustering import read_assignment
from utils.mining.named_groups import read_names
from utils.runtime.errors import InputError
from utils.stores.episode import newest_episode, read_result
from utils.stores.files import read_json
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore
from utils.stores.training_log import STEP_CURVES, cluster_curves

POINTS_A_CURVE = 1_000  # a longer one is thinned out
CLUSTER_MEASURE = "mrr@10"


@dataclass(frozen=True)
class Curve:
    """`steps` int64 (n,), in ascending order, and `values` float64 (n,)."""

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, points: dict[int, float]) -> "Curve":
        steps = sorted(points)
        return cls(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))

    def mean(self, first: int) -> float:
        """The mean over the steps from `first` + 1 on; each point is that of the steps since the point before."""
        return float(np.average(self.values, weights=np.diff(self.steps, prepend=first)))

    def between(self, first: int, last: int) -> "Curve":
        """The points of steps `first` + 1 … `last`: those that a training from `first` to `last` has logged."""
        chosen = (first < self.steps) & (self.steps <= last)
        return Curve(self.steps[chosen], self.values[chosen])


@dataclass(frozen=True)
class TrainedEpisode:
    """An episode that steps `first` + 1 … `last` were trained on; curves by cluster, none where it was ERM.

    `step_clusters` are means over its steps, by the names of `utils.stores.training_log.STEP_CURVES`; empty where a
    version before these has logged it.
    """

    number: int
    first: int
    last: int
    weights: dict[int, Curve]
    losses: dict[int, Curve]
    step_clusters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gains:
    """What each cluster's dev queries gained, float64 (clusters,).

    `before` and `after` are means; `gain` is that of the paired differences and `error` its standard error; nan where
    a cluster has no judged query, or fewer than the two that an error wants. `queries` int64 counts the judged ones.
    """

    queries: np.ndarray
    before: np.ndarray
    after: np.ndarray
    gain: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class QuerySample:
    """Training queries: their rows in the token store, in ascending order, their texts and their clusters.

    `tokens` is the store's fingerprint, `names` those of groups by name, None of clusters.
    """

    rows: np.ndarray
    texts: list[str]
    clusters: np.ndarray
    tokens: str
    names: list[str] | None = None


@dataclass(frozen=True)
class Results:
    """The run's table, whose rows are (label, values), None where there is no value; and what it is about.

    `zero_shot` are the names of the collections, and `step` is that of the last row's checkpoint.
    """

    columns: list[str]
    rows: list[tuple[str, list[float | None]]]
    zero_shot: list[str]
    step: int


def checkpoint_metrics(results: Path) -> dict[int, dict[str, float]]:
    """Step → the metrics of every checkpoint that was evaluated on a collection, from RESULTS/step-N/metrics.json."""
    found = {}
    for path in results.glob("step-*/metrics.json"):
        if name := re.fullmatch(r"step-(\d+)", path.parent.name):
            found[int(name[1])] = read_metrics(path).metrics
    return found


def metric_curves(run: RunFolder, table: Results) -> dict[str, Curve]:
    """The metrics of checkpoints by their steps: of those that were evaluated, and of those that mined an episode.

    The zero-shot metric is the mean over the table's collections, of the checkpoints that were measured on all of
    them. Checkpoints beyond the table's last one are of a run that was longer once.
    """
    results = run.path / "results"
    mined = [read_result(results, number) for number in range(newest_episode(results) + 1)]
    dev = {int(result["step"]): result for result in mined if "step" in result}
    dev |= checkpoint_metrics(results / "dev")
    curves = {f"dev {label}": _metric(dev, name) for label, name in (("MRR@10", "mrr@10"), ("nDCG@10", "ndcg@10"))}
    if table.zero_shot:
        of_sets = []
        for name in table.zero_shot:
            values = {
                int(result["step"]): result["zero_shot"][name]
                for result in mined
                if name in result.get("zero_shot", {})
            }
            of_sets.append(_metric(values | checkpoint_metrics(results / "zero_shot" / name), "ndcg@10"))
        steps = set.intersection(*(set(curve.steps.tolist()) for curve in of_sets))
        means = {step: float(np.mean([curve.values[curve.steps == step] for curve in of_sets])) for step in steps}
        curves["zero-shot nDCG@10"] = Curve.of(means)
    return {label: curve.between(-1, table.step) for label, curve in curves.items()}


def _metric(metrics: dict[int, dict[str, float]], name: str) -> Curve:
    return Curve.of({step: values[name] for step, values in metrics.items() if name in values})


def trained_episodes(run: RunFolder) -> list[TrainedEpisode]:
    """The episodes that training has gone through, in their order, with what it logged; none without its logs.

    A run's groups by name are the same in all its episodes.
    """
    results = run.path / "results"
    names = read_result(results, 0).get("cluster_names") if newest_episode(results) >= 0 else None
    events = EventAccumulator(str(run.path / "logs"), size_guidance={"scalars": POINTS_A_CURVE})
    tags = []
    with suppress(DirectoryDeletedError):
        tags = events.Reload().Tags()["scalars"]

    def read(tag: str) -> Curve:
        return Curve.of({event.step: event.value for event in events.Scalars(tag)} if tag in tags else {})

    def by_cluster(name: str) -> dict[int, Curve]:
        if names:
            curves = cluster_curves(name, len(names), names)
            return {group: read(curve) for group, curve in enumerate(curves) if curve in tags}
        found = (re.fullmatch(rf"{name}/(\d+)", tag) for tag in tags)
        return {int(match[1]): read(match[0]) for match in found if match}

    def of_steps(first: int, last: int) -> dict[str, float]:
        found = {name: read(curve).between(first, last) for name, curve in STEP_CURVES.items()}
        return {name: curve.mean(first) for name, curve in found.items() if len(curve.steps)}

    weights, losses = by_cluster("cluster_weight"), by_cluster("cluster_loss")
    starts, last = read("episode"), int(read("loss").steps.max(initial=0))
    ends = [*starts.steps[1:].tolist(), last]
    return [
        TrainedEpisode(
            int(number),
            first,
            end,
            {cluster: curve.between(first, end) for cluster, curve in weights.items()},
            {cluster: curve.between(first, end) for cluster, curve in losses.items()},
            of_steps(first, end),
        )
        for number, first, end in zip(starts.values.tolist(), starts.steps.tolist(), ends, strict=False)
    ]


def cluster_gains(run: RunFolder, number: int, before: int, after: int) -> Gains:
    """By how much each cluster of episode `number` gained from checkpoint `before` to `after`, which are steps."""
    clusters = DevClusters.read(run.path / "ann_data" / f"clusters_{number}", run.tokens / "dev-query")
    files = (run.path / "results" / "dev" / f"step-{step}" / "per_query.json" for step in (before, after))
    first, second = (clusters.values(read_per_query(path), CLUSTER_MEASURE) for path in files)
    columns = []
    for cluster in range(clusters.count):
        mine = (clusters.assignment == cluster) & ~np.isnan(first) & ~np.isnan(second)
        difference, n = (second - first)[mine], int(mine.sum())
        error = difference.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        means = [values[mine].mean() for values in (first, second)] if n else [np.nan, np.nan]
        columns.append((n, *means, means[1] - means[0], error))
    counts, *values = np.array(columns, np.float64).T
    return Gains(counts.astype(np.int64), *values)


def sample_queries(run: RunFolder, number: int, most: int, seed: int = 0) -> tuple[QuerySample, np.ndarray]:
    """A seeded sample of the training queries, by their clusters in episode `number`, and all clusters' sizes.

    Their texts are read from the training collection's own file, which must be the one that was tokenized.
    """
    store = TokenStore(run.tokens / "train-query")
    assignment, count = read_assignment(run.path / "ann_data" / f"clusters_{number}", "assignment", len(store))
    rows = np.sort(np.random.default_rng(seed).choice(len(store), min(most, len(store)), replace=False))
    ids = store.ids
    wanted = {ids[row]: i for i, row in enumerate(rows.tolist())}
    texts = [""] * len(rows)
    path = run.data_dir / store.meta.source_file
    if not path.is_file():
        raise InputError("no such file; the report shows queries from it", path)
    read = read_jsonl if path.name.removesuffix(".gz").endswith(".jsonl") else read_tsv
    for _, query_id, text in read(path):
        if query_id in wanted:
            texts[wanted.pop(query_id)] = text
    if wanted:
        raise InputError(f"lacks query {min(wanted)!r} of {store.folder}: it was changed since; tokenize again", path)
    names = read_names(run.path / "ann_data" / f"clusters_{number}", count)
    sizes = np.bincount(assignment, minlength=count)
    return QuerySample(rows, texts, assignment[rows], store.meta.sha256, names), sizes


def read_results(run: RunFolder) -> Results:
    """The run's table, from results.json; `InputError` where it is not what evaluate/results_table.py writes."""
    path = run.path / "results" / "results.json"
    content = read_json(path)
    try:
        columns, rows = content["columns"], [(row["run"], row["cells"]) for row in content["rows"]]
        if not rows or not all(isinstance(label, str) and len(cells) == len(columns) for label, cells in rows):
            raise TypeError("rows and columns differ")
        last = content["rows"][-1]
        step = re.fullmatch(r"checkpoint-(\d+)", Path(last["dev"]["checkpoint"]).name)
        if not step or len(step[1]) > 18:
            raise TypeError("its last row is of no checkpoint of a run")
        names = [metrics["collection"] for metrics in last["zero_shot"]]
        if not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise TypeError("a zero-shot collection's name is none")
    except (KeyError, TypeError) as error:
        raise InputError(f"is not what evaluate/results_table.py writes ({error}); make it again", path) from None
    return Results(columns, rows, names, int(step[1]))
