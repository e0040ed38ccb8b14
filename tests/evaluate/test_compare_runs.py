"""Runs side by side, from the files that evaluations leave."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data.beir_sets import CQADUPSTACK
from evaluate import compare_runs, mean_of_parts
from evaluate.compare_runs import Collection, read_comparison, read_runs
from evaluate.metrics_file import COLLAPSED, RunMetrics, read_metrics, write_metrics
from evaluate.significance import compare, holm, mean_of_means
from utils.runtime.errors import InputError
from utils.stores.files import write_json


def write(folder: Path, collection: str, values: dict[str, float], run: str = "run", collapsed: bool = False) -> Path:
    """What an evaluation leaves: metrics.json, whose path is returned, and per_query.json."""
    queries = {query: {"ndcg@10": value, "mrr@10": value / 2} for query, value in values.items()}
    write_json(folder / "per_query.json", {"run": run, "collection": collection, "queries": queries})
    means = {"ndcg@10": float(np.mean([*values.values()])), "mrr@10": float(np.mean([*values.values()]) / 2)}
    write_metrics(folder / "metrics.json", RunMetrics(run, collection, None, len(values), means, [], collapsed))
    return folder / "metrics.json"


def random_values(seed: int, queries: int) -> dict[str, float]:
    values = np.random.default_rng(seed).random(queries)
    return {f"q{i}": float(value) for i, value in enumerate(values)}


@pytest.fixture
def main(monkeypatch):
    def run(module, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        module.main()

    return run


def test_the_table_has_every_mean_and_every_difference_with_its_corrected_p(main, tmp_path, capsys):
    files = {
        label: [
            write(tmp_path / label / name, name, random_values(seed, size)) for name, size in (("a", 30), ("b", 9))
        ]
        for seed, label in enumerate(("base", "better", "other"))
    }
    runs = [f"{label}={first},{second}" for label, (first, second) in files.items()]
    main(compare_runs, "--out_dir", tmp_path, "--runs", *runs)
    found = json.loads((tmp_path / "comparison.json").read_text())
    values = {
        label: [[np.array([*random_values(seed, size).values()])] for size in (30, 9)]
        for seed, label in enumerate(files)
    }
    expected = [
        compare(values["base"][chosen], values[label][chosen])
        for label in ("better", "other")
        for chosen in (slice(0, 1), slice(1, 2), slice(None))
    ]
    ps = holm([difference.p for difference in expected])
    listed = [of_run[name] for of_run in found["differences"].values() for name in ("a", "b", "mean")]
    assert [one["mean"] for one in listed] == pytest.approx([difference.mean for difference in expected])
    assert [one["p"] for one in listed] == pytest.approx(ps)
    assert found["means"]["other"]["b"] == pytest.approx(values["other"][1][0].mean())
    printed = capsys.readouterr().out
    macro = (values["better"][0][0].mean() + values["better"][1][0].mean()) / 2
    assert f"{macro:.3f}" in next(line for line in printed.splitlines() if line.startswith("mean"))
    assert "| mean | 39 |" in (tmp_path / "comparison.md").read_text()


def test_parts_count_alike_however_many_queries_they_have(main, tmp_path):
    parts = [
        write(tmp_path / "cqa" / name, name, random_values(i, size))
        for i, (name, size) in enumerate((("android", 3), ("english", 40)))
    ]
    main(mean_of_parts, "--collection", "cqa", "--out_dir", tmp_path / "cqa", "--parts", *parts)
    metrics = read_metrics(tmp_path / "cqa" / "metrics.json")
    expected = np.mean([np.mean([*random_values(i, size).values()]) for i, size in enumerate((3, 40))])
    assert metrics.metrics["ndcg@10"] == pytest.approx(expected)
    assert (metrics.queries, metrics.parts) == (43, ["android/metrics.json", "english/metrics.json"])
    whole = Collection.read(tmp_path / "cqa" / "metrics.json", "ndcg@10")
    assert {name: len(values) for name, values in whole.parts.items()} == {"android": 3, "english": 40}
    assert mean_of_means([whole.in_order_of(whole)]) == pytest.approx(expected)


def test_the_parts_of_a_published_collection_may_lie_anywhere_and_their_queries_are_counted(main, tmp_path, capsys):
    parts = [
        write(tmp_path / "cqadupstack" / name / "bm25", name, random_values(i, 3))
        for i, name in enumerate(CQADUPSTACK)
    ]
    out = tmp_path / "cqadupstack" / "bm25"
    main(mean_of_parts, "--collection", "cqadupstack", "--out_dir", out, "--parts", *parts)
    assert len(Collection.read(out / "metrics.json", "ndcg@10").parts) == 12
    assert "cqadupstack has 36 judged queries, and BEIR's 13,145" in capsys.readouterr().out


def test_of_a_published_collection_all_parts_must_be_there_and_of_one_run(main, tmp_path):
    parts = [write(tmp_path / name, name, random_values(0, 3)) for name in ("android", "cooking")]
    with pytest.raises(InputError, match=r"missing: english, gaming.*unknown: cooking"):
        main(mean_of_parts, "--collection", "cqadupstack", "--out_dir", tmp_path, "--parts", *parts)
    nowhere = [tmp_path / "nowhere" / name / "metrics.json" for name in CQADUPSTACK]
    check = "--check_only", "--collection", "cqadupstack", "--out_dir", tmp_path / "out", "--parts"
    main(mean_of_parts, *check, *nowhere)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"missing: wordpress; unknown: none"):
        main(mean_of_parts, *check, *nowhere[:-1])
    parts[1] = write(tmp_path / "b", "b", random_values(0, 3), run="another")
    with pytest.raises(InputError, match="several runs: another, run"):
        main(mean_of_parts, "--collection", "mine", "--out_dir", tmp_path, "--parts", *parts)


def test_runs_on_different_queries_are_not_compared(tmp_path):
    first = write(tmp_path / "1", "a", random_values(0, 5))
    fewer = write(tmp_path / "2", "a", random_values(0, 4))
    other = write(tmp_path / "3", "b", random_values(0, 5))
    for runs, reason in (
        ([f"x={first}", f"y={fewer}"], "has not the queries of"),
        ([f"x={first}", f"y={other}"], "is of b, and the baseline's file in that place of a"),
        ([f"x={first}", f"y={first},{other}"], "names 2 files, and the baseline 1"),
        ([f"x={first}", f"x={first}"], "the same label"),
        (["x"], "is not LABEL=METRICS"),
    ):
        with pytest.raises(InputError, match=reason):
            read_runs(runs, "ndcg@10")
    with pytest.raises(InputError, match=r"holds no recall@5, only ndcg@10, mrr@10"):
        read_runs([f"x={first}"], "recall@5")


def test_a_run_without_metrics_on_a_collection_has_no_difference_there_and_no_mean(main, tmp_path, capsys):
    first, second, other, better = (
        write(tmp_path / str(i), name, random_values(i, 12)) for i, name in enumerate(("a", "b", "a", "b"))
    )
    main(compare_runs, "--out_dir", tmp_path, "--runs", f"BM25=-,{second}", f"ours={other},{better}")
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["means"]["BM25"].keys() == {"b"}
    assert found["means"]["ours"].keys() == {"a", "b"}
    alone = compare([[np.array([*random_values(1, 12).values()])]], [[np.array([*random_values(3, 12).values()])]])
    assert found["differences"]["ours"].keys() == {"b"}
    assert found["differences"]["ours"]["b"]["p"] == alone.p, "corrected for this one test"
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    ours = [np.mean([*random_values(i, 12).values()]) for i in (2, 3)]
    assert rows["a"] == ["a", "12", "-", f"{ours[0]:.3f}"]
    assert rows["mean"] == ["mean", "24", "-", f"{np.mean(ours):.3f}"]

    main(compare_runs, "--out_dir", tmp_path, "--runs", "BM25=-", f"ours={first}")
    assert "difference" not in capsys.readouterr().out
    with pytest.raises(InputError, match="no run has metrics on collection 1"):
        read_runs(["BM25=-"], "ndcg@10")


def test_a_run_whose_checkpoint_has_collapsed_on_a_collection_says_so_in_every_table(main, tmp_path, capsys):
    for collapsed in (set(), {"mine"}, {"base", "mine"}):
        runs = []
        for seed, label in enumerate(("base", "mine", "other")):
            values = random_values(seed, 5)
            a = write(tmp_path / label / "a", "a", values)
            b = write(tmp_path / label / "b", "b", values, collapsed=label in collapsed)
            runs.append(f"{label}={a},{b}")
        main(compare_runs, "--out_dir", tmp_path, "--runs", *runs)
        labels = {
            label: f"{label} {COLLAPSED}" if label in collapsed else label for label in ("base", "mine", "other")
        }
        for text in (capsys.readouterr().out, (tmp_path / "comparison.md").read_text().replace("| ", "  ")):
            heads = text.splitlines()[0]
            assert all(f"  {label}" in heads for label in labels.values())
            assert f"difference from {labels['base']}" in text
            rows = [line.strip() for line in text.splitlines() if line.strip().startswith(("mine", "other"))]
            assert len(rows) == 6
            assert all(row.startswith((labels["mine"], labels["other"])) for row in rows)
            assert heads.count(COLLAPSED) == len(collapsed)
        assert json.loads((tmp_path / "comparison.json").read_text())["collapsed"] == {
            label: ["b"] for label in collapsed
        }
        comparison = read_comparison(tmp_path / "comparison.json")
        assert {label: comparison.marked(label) for label in labels} == labels


def test_files_of_two_evaluations_are_refused(tmp_path):
    path = write(tmp_path, "a", random_values(0, 5))
    write(tmp_path / "later", "a", random_values(1, 5))
    (tmp_path / "later" / "per_query.json").replace(tmp_path / "per_query.json")
    with pytest.raises(InputError, match="they are of two evaluations"):
        read_runs([f"x={path}"], "ndcg@10")


def test_a_collection_apart_does_not_count_in_the_mean_and_one_name_twice_is_told_apart(main, tmp_path, capsys):
    base, other = (
        [str(write(tmp_path / f"{run}{i}", "dev", random_values(10 * run + i, 10))) for i in range(3)]
        for run in (0, 1)
    )
    main(compare_runs, "--out_dir", tmp_path, "--apart", 1, "--runs", f"a={','.join(base)}", f"b={','.join(other)}")
    found = json.loads((tmp_path / "comparison.json").read_text())
    differences = found["differences"]["b"]
    assert list(differences) == ["dev", "dev (2)", "dev (3)", "mean"]
    means = [np.mean([found["means"][run][name] for name in ("dev (2)", "dev (3)")]) for run in ("a", "b")]
    assert differences["mean"]["mean"] == pytest.approx(means[1] - means[0])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mean"))
    assert row.split() == ["mean", "20", f"{means[0]:.3f}", f"{means[1]:.3f}"]


@pytest.mark.parametrize(
    "content",
    [
        {"measure": "ndcg@10", "baseline": "a"},
        {"measure": "ndcg@10", "baseline": "a", "differences": {"b": {"dev": {"mean": "a lot"}}}},
        {"measure": "ndcg@10", "baseline": "a", "differences": {"b": {"dev": {"mean": 0.1}}}},
        {"measure": "ndcg@10", "baseline": "a", "differences": []},
        {"measure": "ndcg@10", "baseline": "a", "differences": {}, "collapsed": ["a"]},
        {"measure": "ndcg@10", "baseline": "a", "differences": {}, "collapsed": {"a": True}},
    ],
)
def test_a_comparison_of_another_form_is_refused(tmp_path, content):
    write_json(tmp_path / "comparison.json", content)
    with pytest.raises(InputError, match=r"comparison\.json: is not what evaluate/compare_runs\.py writes"):
        read_comparison(tmp_path / "comparison.json")
