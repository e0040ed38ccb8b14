"""metrics.json: what one run (a checkpoint, or BM25) reached on one collection. The one place that knows its layout.

{"run": "Episode 1", "collection": "cisi", "checkpoint": "saved_models/checkpoint-100", "queries": 76,
 "metrics": {"ndcg@10": 0.32, "map@10": 0.08, "mrr@10": 0.6, "mrr": 0.6, "recall@100": 0.4, "recall@1000": 0.8}}
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.errors import InputError
from utils.files import read_json, write_json
from utils.metrics import Evaluation


@dataclass(frozen=True)
class RunMetrics:
    """The content of metrics.json.

    `run` is the label in tables; `checkpoint` None for a run without one (BM25); `queries` the number of judged
    queries; `metrics` their means by the names of `utils.metrics.MEASURES`, each in [0, 1].
    """

    run: str
    collection: str
    checkpoint: str | None
    queries: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, evaluation: Evaluation, run: str, collection: str, checkpoint: str | None = None) -> "RunMetrics":
        """What `utils.metrics.evaluate_run` found, with its labels."""
        return cls(run, collection, checkpoint, evaluation.queries, evaluation.means)

    def line(self) -> str:
        """One line for a person: the collection, the queries and every measure."""
        means = "  ".join(f"{name} {mean:.4f}" for name, mean in self.metrics.items())
        return f"{self.run} on {self.collection} ({self.queries:,} queries): {means}"


def write_metrics(path: str | Path, metrics: RunMetrics) -> None:
    """Writes metrics.json, atomically."""
    write_json(path, asdict(metrics))


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
        if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"{name} is {value!r}, expected a number from 0 to 1; evaluate again", path)
    return RunMetrics(content["run"], content["collection"], content.get("checkpoint"), queries, content["metrics"])


def measure(metrics: RunMetrics, name: str, path: str | Path) -> float:
    """One measure of it; `InputError` naming the file `path` where that measure is missing."""
    if name not in metrics.metrics:
        raise InputError(f"holds no {name}, only {', '.join(metrics.metrics) or 'nothing'}; evaluate again", path)
    return metrics.metrics[name]
