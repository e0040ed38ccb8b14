"""The table of results: what stands in it, what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluate import results_table
from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import RunMetrics, write_metrics
from evaluate.results_table import cautions, differences, read_row, table_of
from tests.tiny_models import random_store
from tests.tiny_run import call
from utils.mining.named_groups import NamedGroups
from utils.runtime.errors import InputError
from utils.stores.files import write_json

SCRIPT = Path(__file__).resolve().parents[2] / "evaluate" / "results_table.py"


@pytest.fixture
def metrics_of(tmp_path):
    """Writes a metrics.json with these values and returns its path."""

    def write(name: str, mrr: float, ndcg: float, recall: float, queries: int = 100) -> str:
        path = tmp_path / "with blanks" / f"{name}.json"
        metrics = {"mrr@10": mrr, "ndcg@10": ndcg, "recall@100": recall}
        write_metrics(path, RunMetrics(name, name, f"checkpoint of {name}", queries, metrics))
        return str(path)

    return write


def test_a_row_takes_dev_from_the_first_file_and_the_mean_of_the_others_for_zero_shot(metrics_of):
    dev = metrics_of("dev", 0.1, 0.2, 0.3)
    first, second = metrics_of("first", 0.9, 0.25, 0.9), metrics_of("second", 0.9, 0.75, 0.9)
    assert read_row(f"Episode 1={dev}").cells == [0.1, 0.2, 0.3, None]
    assert read_row(f"Episode 1={dev},{first}").cells == [0.1, 0.2, 0.3, 0.25]
    assert read_row(f"Episode 1={dev},{first},{second}").cells == [0.1, 0.2, 0.3, 0.5]
    assert read_row(f"Episode 1={dev}").label == "Episode 1"


def test_own_test_queries_have_a_column_under_their_name_and_are_no_zero_shot(metrics_of, tmp_path, capsys):
    dev, own, other = (
        metrics_of(name, 0.1, ndcg, 0.3) for name, ndcg in (("dev", 0.2), ("mails", 0.5), ("cisi", 0.75))
    )
    call(results_table, "--test", "--out_dir", tmp_path, "--rows", f"BM25={dev}", f"Episode 1={dev},{own},{other}")
    heading, bm25, episode = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert [cell.strip() for cell in heading if cell][-2:] == ["mails test nDCG@10", "zero-shot nDCG@10"]
    assert [cell.strip() for cell in bm25 if cell.strip()][-2:] == ["-", "-"]
    assert [cell.strip() for cell in episode if cell.strip()][-2:] == ["0.500", "0.750"]
    row = json.loads((tmp_path / "results.json").read_text())["rows"][1]
    assert (row["test"]["collection"], [of["collection"] for of in row["zero_shot"]]) == ("mails", ["cisi"])
    with pytest.raises(InputError, match=r"--test says .* no row has two"):
        call(results_table, "--test", "--out_dir", tmp_path, "--rows", f"BM25={dev}")


@pytest.mark.parametrize("text", ["no file", "label=", "=file.json", "label=a.json,", "label=,b.json", " =a.json"])
def test_a_row_that_is_none_is_named(text):
    with pytest.raises(InputError, match="is not LABEL=DEV_METRICS"):
        read_row(text)


def test_a_measure_that_a_file_lacks_is_named_with_the_file(tmp_path, metrics_of):
    write_metrics(tmp_path / "poor.json", RunMetrics("r", "c", None, 1, {"mrr@10": 0.5}))
    with pytest.raises(InputError, match=r"poor\.json: holds no ndcg@10"):
        read_row(f"BM25={metrics_of('dev', 0.1, 0.2, 0.3)},{tmp_path / 'poor.json'}")


def test_rows_over_different_queries_are_pointed_out(metrics_of):
    ten, twelve = metrics_of("ten", 0.1, 0.2, 0.3, queries=10), metrics_of("twelve", 0.1, 0.2, 0.3, queries=12)
    assert differences([read_row(f"a={ten},{twelve}"), read_row(f"b={ten},{twelve}"), read_row(f"c={ten}")]) == []
    (note,) = differences([read_row(f"a={ten},{ten}"), read_row(f"b={twelve},{ten}")])
    assert "same dev queries (10 or 12)" in note
    (note,) = differences([read_row(f"a={ten},{ten}"), read_row(f"b={ten},{ten},{ten}")])
    assert "same zero-shot queries (10 or 10 + 10)" in note


def test_the_script_prints_aligned_text_and_writes_markdown_and_json(tmp_path, metrics_of):
    dev, other = metrics_of("dev", 0.12345, 0.2, 1.0), metrics_of("other", 0.9, 0.4567, 0.9)
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--out_dir", tmp_path / "out", "--rows", f"BM25={dev}", f"Episode 1={dev},{other}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == (
        "           dev MRR@10  dev nDCG@10  dev recall@100  zero-shot nDCG@10\n"
        "BM25            0.123        0.200           1.000                  -\n"
        "Episode 1       0.123        0.200           1.000              0.457\n"
    )
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[0] == "|  | dev MRR@10 | dev nDCG@10 | dev recall@100 | zero-shot nDCG@10 |"
    assert lines[3] == "| Episode 1 | 0.123 | 0.200 | 1.000 | 0.457 |"
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["BM25", "Episode 1"]
    assert rows[1]["dev"]["metrics"]["mrr@10"] == 0.12345
    assert rows[0]["zero_shot"] == []
    assert rows[1]["zero_shot"][0]["checkpoint"] == "checkpoint of other"


def test_a_missing_file_ends_the_script_with_its_name_and_nothing_written(tmp_path):
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--out_dir", tmp_path / "out", "--rows", f"BM25={tmp_path / 'none.json'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr == f"error: {tmp_path / 'none.json'}: no such file\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [2, 20, 23])
def test_named_groups_have_a_table_of_their_own_and_the_worst_group_a_column(tmp_path, metrics_of, capsys, count):
    """Query i is in group i % count, which so has fewer queries the higher its number; the last query is in none."""
    stores = tmp_path / "dev-query"
    queries = random_store(stores, 11 * count).ids
    groups = np.arange(len(queries)) % count
    groups[-1] = -1
    names = [f"group {chr(ord('a') + i)} | x" for i in range(count)]
    NamedGroups(names, np.bincount(groups + 1)[1:], groups).save(tmp_path / "clusters_0", groups)
    dev = metrics_of("dev", 0.1, 0.2, 0.3)
    values = {
        query: {"mrr@10": (groups[i] + 1) / 64, "ndcg@10": 0.5, "recall@100": 1.0} for i, query in enumerate(queries)
    }
    write_json(Path(dev).with_name("per_query.json"), {"queries": values})
    clusters = "--clusters_dir", tmp_path / "clusters_0", "--dev_query_dir", stores
    call(results_table, "--out_dir", tmp_path / "out", *clusters, "--rows", f"BM25={dev}", f"first={dev}")
    table, by_group = capsys.readouterr().out.split("\n\n")
    assert table.splitlines()[1].split() == ["BM25", "0.100", "0.200", "0.300", "0.016", "-"]
    assert "worst group MRR@10" in table
    lines = by_group.splitlines()
    assert lines[0].split() == ["dev", "MRR@10", "by", "group", "queries", "BM25", "first"]
    for i, line in enumerate(lines[1:21]):  # the last group has one query less
        assert line.split() == [*names[i].split(), str(11 - (i == count - 1)), *[f"{(i + 1) / 64:.3f}"] * 2]
    assert lines[21:] == ([f"and 3 smaller groups: {tmp_path / 'out' / 'table.md'}"] if count > 20 else [])
    assert len(lines) == 1 + min(count, 20) + (count > 20)
    assert (tmp_path / "out" / "table.md").read_text().count("\\| x") == count
    first = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]
    assert first["group_means"][names[1]] == {"mrr@10": 2 / 64, "ndcg@10": 0.5, "recall@100": 1.0}
    assert first["group_queries"][names[-1]] == 10


def test_the_worst_cluster_is_a_column_where_clusters_are_given(tmp_path, metrics_of):
    dev = metrics_of("dev", 0.1, 0.2, 0.3)
    ids = [f"q{i}" for i in range(20)]
    clusters = DevClusters(ids, np.arange(20) % 2, 2)
    queries = {query: {"mrr@10": 0.25 if i % 2 else 0.75} for i, query in enumerate(ids)}
    write_json(Path(dev).with_name("per_query.json"), {"queries": queries})
    row = read_row(f"Episode 1={dev}", clusters)
    assert row.cells == [0.1, 0.2, 0.3, 0.25, None]
    assert row.cluster_means == [0.75, 0.25]
    heading, line = table_of([row])
    assert dict(zip(heading, line, strict=True))["worst cluster MRR@10"] == "0.250"
    assert "worst cluster MRR@10" not in table_of([read_row(f"Episode 1={dev}")])[0]


@pytest.mark.parametrize(
    ("queries", "judged", "said"),
    [(100, 10, []), (99, 10, ["99 dev queries are few"]), (100, 9, ["no cluster has 10 judged dev queries"])],
)
def test_few_dev_queries_and_clusters_without_a_measure_are_pointed_out(tmp_path, metrics_of, queries, judged, said):
    dev = metrics_of("dev", 0.1, 0.2, 0.3, queries=queries)
    clusters = DevClusters([f"q{i}" for i in range(judged)], np.zeros(judged, dtype=np.int64), 1)
    values = {query: {"mrr@10": 0.5} for query in clusters.ids}
    write_json(Path(dev).with_name("per_query.json"), {"queries": values})
    notes = cautions([read_row(f"Episode 1={dev}", clusters)])
    assert [part in note for part, note in zip(said, notes, strict=True)] == [True] * len(said)
