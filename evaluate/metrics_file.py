"""What one run (a checkpoint, or BM25) reached on one collection. The one place that knows these files' layout.

metrics.json     {"run": "Episode 1", "collection": "cisi", "checkpoint": "saved_models/checkpoint-100",
                  "queries": 76, "metrics": {"ndcg@10": 0.32, "map@10": 0.08, "mrr@10": 0.6, "mrr": 0.6,
                  "recall@100": 0.4, "recall@1000": 0.8}, "parts": [], "collapsed": false}
per_query.json   {"run": "Episode 1", "collection": "cisi", "queries": {"1": {"ndcg@10": 0.5, …}, …}}, of the judged
                 queries by their ids
run.trec         the rankings, and
qrels.trec       all judgments of the judged queries: the metrics are those that `trec_eval -c` gives for the two
left_out.txt     instead of all these: why the run has no metrics on this collection
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from utils.mining.metrics import Evaluation
from utils.mining.rankings import Ranking
from utils.runtime.errors import InputError
from utils.stores.files import atomic_file, read_json, write_json
from utils.stores.qrels import Qrels
from utils.stores.trec import write_trec_qrels, write_trec_run

COLLAPSED = "(collapsed: no ranking)"  # beside such figures
LEFT_OUT = "left_out.txt"
PerQuery = dict[str, dict[str, float]]  # query id → measure → value


@dataclass(frozen=True)
class RunMetrics:
    """The content of metrics.json.

    `run` is the label in tables; `checkpoint` None for a run without one (BM25); `queries` the number of judged
    queries; `metrics` their means by the names of `utils.mining.metrics.MEASURES`, each in [0, 1]. Where the
    collection is evaluated in parts, `metrics` are the means over them and `parts` their metrics.json, relative to
    this one. `collapsed`: the checkpoint gives different texts the same vector (`utils.mining.collapse`), so that
    they mean nothing.
    """

    run: str
    collection: str
    checkpoint: str | None
    queries: int
    metrics: dict[str, float]
    parts: list[str] = field(default_factory=list)
    collapsed: bool = False

    @classmethod
    def of(
        cls, evaluation: Evaluation, run: str, collection: str, checkpoint: str | None = None, collapsed: bool = False
    ) -> "RunMetrics":
        """What `utils.mining.metrics.evaluate_run` found, with its labels."""
        return cls(run, collection, checkpoint, evaluation.queries, evaluation.means, collapsed=collapsed)

    def line(self) -> str:
        """One line for a person: the collection, the queries and every measure."""
        means = "  ".join(f"{name} {mean:.4f}" for name, mean in self.metrics.items())
        collapsed = f"  {COLLAPSED}" if self.collapsed else ""
        return f"{self.run} on {self.collection} ({self.queries:,} queries): {means}{collapsed}"


def write_evaluation(
    folder: str | Path,
    metrics: RunMetrics,
    evaluation: Evaluation,
    ranking: Ranking,
    qrels: Qrels,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
) -> None:
    """Writes run.trec, qrels.trec, per_query.json and, last, metrics.json into `folder`, each atomically.

    `evaluation`, `ranking` and `qrels` are by row; the ids are those of the rows, missing passages' too.
    """
    folder = Path(folder)
    (folder / LEFT_OUT).unlink(missing_ok=True)
    write_trec_run(folder / "run.trec", query_ids, passage_ids, ranking.rows, ranking.scores, metrics.run)
    judged = np.isfinite(next(iter(evaluation.values.values())))
    write_trec_qrels(folder / "qrels.trec", query_ids, passage_ids, qrels.only(judged[qrels.query_rows]))
    values = {
        query_ids[row]: {name: float(value[row]) for name, value in evaluation.values.items()}
        for row in np.flatnonzero(judged).tolist()
    }
    write_json(folder / "per_query.json", {"run": metrics.run, "collection": metrics.collection, "queries": values})
    write_metrics(folder / "metrics.json", metrics)


def write_left_out(folder: str | Path, reason: str) -> None:
    """Writes left_out.txt; what an earlier evaluation left in the folder goes, metrics.json first."""
    folder = Path(folder)
    for name in ("metrics.json", "per_query.json", "run.trec", "qrels.trec"):
        (folder / name).unlink(missing_ok=True)
    with atomic_file(folder / LEFT_OUT) as handle:
        handle.write(f"{reason}\n")


def write_metrics(path: str | Path, metrics: RunMetrics) -> None:
    """Writes metrics.json, atomically."""
    write_json(path, asdict(metrics))


def read_per_query(path: str | Path) -> PerQuery:
    """Reads per_query.json: query id → measure → value; `InputError` naming the file and what is wrong with it."""
    queries = read_json(path).get("queries")
    if not isinstance(queries, dict) or not queries:
        raise InputError("holds no queries: it is no per_query.json, or was altered; evaluate again", path)
    measures = None
    for query, values in queries.items():
        if not isinstance(values, dict) or not all(map(_is_share, values.values())):
            raise InputError(f"query {query!r} has {values!r:.80}, not numbers from 0 to 1; evaluate again", path)
        if measures is not None and values.keys() != measures:
            raise InputError(f"query {query!r} has other measures than the ones before; evaluate again", path)
        measures = values.keys()
    return queries


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def read_metrics(path: str | Path) -> RunMetrics:
    """Reads metrics.json; `InputError` naming the file and what is wrong with it."""
    path = Path(path)
    content = read_json(path)
    expected = {"run": str, "collection": str, "checkpoint": (str, type(None)), "metrics": dict}
    for name, kind in expected.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{name} is {content.get(name)!r}: it is no metrics.json, or was altered", path)
    queries = content.get("queries")
    if type(queries) is not int or queries < 1:
        raise InputError(f"queries is {queries!r}, expected a whole number above 0; evaluate again", path)
    for name, value in content["metrics"].items():
        if not _is_share(value):
            raise InputError(f"{name} is {value!r}, expected a number from 0 to 1; evaluate again", path)
    parts = content.get("parts", [])
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"parts is {parts!r:.80}, expected paths; evaluate again", path)
    collapsed = content.get("collapsed", False)
    if not isinstance(collapsed, bool):
        raise InputError(f"collapsed is {collapsed!r:.80}, expected true or false; evaluate again", path)
    labels = content["run"], content["collection"], content.get("checkpoint")
    return RunMetrics(*labels, queries, content["metrics"], parts, collapsed)


def measure(metrics: RunMetrics, name: str, path: str | Path) -> float:
    """One measure of it; `InputError` naming the file `path` where that measure is missing."""
    if name not in metrics.metrics:
        raise InputError(f"holds no {name}, only {', '.join(metrics.metrics) or 'nothing'}; evaluate again", path)
    return metrics.metrics[name]
