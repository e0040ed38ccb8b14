"""metrics.json: what is written is read, and what was altered is named."""

import json

import numpy as np
import pytest

from evaluate.metrics_file import RunMetrics, measure, read_metrics, write_metrics
from utils.mining.metrics import evaluate_run
from utils.runtime.errors import InputError
from utils.stores.qrels import Qrels

METRICS = RunMetrics("Episode 1", "cisi", "saved_models/checkpoint-100", 76, {"ndcg@10": 0.25, "mrr": 1.0})


def test_metrics_come_back_as_they_were_written(tmp_path):
    for metrics in (METRICS, RunMetrics("BM25", "cisi", None, 1, {"mrr": 0.0})):
        write_metrics(tmp_path / "metrics.json", metrics)
        assert read_metrics(tmp_path / "metrics.json") == metrics


def test_the_layout_is_the_agreed_one(tmp_path):
    write_metrics(tmp_path / "metrics.json", METRICS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "run": "Episode 1",
        "collection": "cisi",
        "checkpoint": "saved_models/checkpoint-100",
        "queries": 76,
        "metrics": {"ndcg@10": 0.25, "mrr": 1.0},
        "parts": [],
        "collapsed": False,
    }


def test_an_evaluation_gives_its_means_and_its_judged_queries():
    qrels = Qrels(*np.array([[0, 7, 1], [1, 7, 0]]).T)
    metrics = RunMetrics.of(evaluate_run(np.array([[3, 7], [7, 3]]), qrels), "BM25", "tiny")
    assert (metrics.run, metrics.collection, metrics.checkpoint, metrics.queries) == ("BM25", "tiny", None, 1)
    assert metrics.metrics["mrr@10"] == 0.5
    assert metrics.line().startswith("BM25 on tiny (1 queries): ndcg@10 0.6309  ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": None}, "run is None"),
        ({"collection": 3}, "collection is 3"),
        ({"checkpoint": 5}, "checkpoint is 5"),
        ({"metrics": [0.5]}, r"metrics is \[0.5\]"),
        ({"queries": 0}, "queries is 0"),
        ({"queries": True}, "queries is True"),
        ({"queries": 7.5}, "queries is 7.5"),
        ({"metrics": {"mrr": 1.5}}, "mrr is 1.5"),
        ({"metrics": {"mrr": -0.1}}, "mrr is -0.1"),
        ({"metrics": {"mrr": "0.5"}}, "mrr is '0.5'"),
        ({"metrics": {"mrr": float("nan")}}, "mrr is nan"),
        ({"parts": "a/metrics.json"}, "parts is 'a/metrics.json'"),
        ({"parts": [3]}, r"parts is \[3\]"),
    ],
)
def test_an_altered_file_is_named_with_what_is_wrong(tmp_path, changed, message):
    path = tmp_path / "metrics.json"
    content = {"run": "r", "collection": "c", "checkpoint": None, "queries": 1, "metrics": {"mrr": 0.5}}
    path.write_text(json.dumps(content))
    assert read_metrics(path).metrics == {"mrr": 0.5}
    path.write_text(json.dumps(content | changed))
    with pytest.raises(InputError, match=message) as raised:
        read_metrics(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_measure_that_is_missing_is_named_with_the_file(tmp_path):
    assert measure(METRICS, "ndcg@10", "a.json") == 0.25
    with pytest.raises(InputError, match=r"a\.json: holds no map@10, only ndcg@10, mrr"):
        measure(METRICS, "map@10", "a.json")
