"""Objectives side by side, from the folders of their runs."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluate import compare_objectives
from evaluate.compare_objectives import Values, intervals, measure
from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import COLLAPSED, RunMetrics, write_metrics
from tests.tiny_models import random_store
from utils.mining.named_groups import NamedGroups
from utils.runtime.errors import InputError
from utils.stores.files import write_json

QUERIES, CLUSTERS = 40, 2
ASSIGNMENT = np.arange(QUERIES) % CLUSTERS


def write_run(folder: Path, seed: int, gain: float) -> None:
    """A run's folder as commands/run_ance.sh leaves it, as far as it is read; its name is its objective's, -seed."""
    kind, *options = folder.name.split("-")[0].split("+")
    settings = {
        "train": f"OBJECTIVE={kind}\nABSENT={'keep' if 'keep' in options else 'drop'}\nSEED={seed}\n",
        **dict.fromkeys(("tokenize", "mine", "evaluate"), "OTHER=1\n"),
    }
    folder.mkdir()
    for stage, lines in settings.items():
        (folder / f"settings.{stage}").write_text(lines)
    generator = np.random.default_rng(seed)
    random_store(folder / "preprocessed" / "dev-query", QUERIES)
    ids = (folder / "preprocessed" / "dev-query" / "ids.txt").read_text().splitlines()
    clusters = folder / "ann_data" / "clusters_0"
    clusters.mkdir(parents=True)
    np.save(clusters / "sizes.npy", np.array([5, 5]))
    np.save(clusters / "dev_assignment.npy", ASSIGNMENT)
    for step, more in ((0, 0.0), (9, gain)):
        for path, names, name in (
            (f"dev/step-{step}", ids, "mrr@10"),
            (f"zero_shot/a b/step-{step}", ["x", "y", "z"], "ndcg@10"),
        ):
            values = {
                query: {name: float(v)}
                for query, v in zip(names, generator.random(len(names)) / 2 + more, strict=True)
            }
            write_json(folder / "results" / path / "per_query.json", {"queries": values})
            metrics = RunMetrics("r", path, "c", len(values), {name: 0.5})
            write_metrics(folder / "results" / path / "metrics.json", metrics)


@pytest.fixture
def main(monkeypatch):
    def run(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["compare_objectives.py", *map(str, arguments)])
        compare_objectives.main()

    return run


def test_means_over_seeds_and_the_gain_over_the_first_objective(main, tmp_path, capsys):
    for name, gain in (("erm", 0.1), ("idro+keep", 0.4)):
        for seed in (1, 2):
            write_run(tmp_path / f"{name}-{seed}", seed, gain)
    objectives = [f"{name}={tmp_path}/{name}-1,{tmp_path}/{name}-2" for name in ("erm", "idro+keep")]
    main("--out_dir", tmp_path, "--step", 9, "--objectives", *objectives)
    found = json.loads((tmp_path / "objectives.json").read_text())

    def dev(run: str) -> np.ndarray:
        values = json.loads((tmp_path / run / "results" / "dev" / "step-9" / "per_query.json").read_text())["queries"]
        return np.array([value["mrr@10"] for value in values.values()])

    for seed in (1, 2):
        values = dev(f"idro+keep-{seed}")
        mean, worst, _ = found["reached"]["idro+keep"][seed - 1]
        assert mean == pytest.approx(values.mean())
        assert worst == pytest.approx(min(values[cluster == ASSIGNMENT].mean() for cluster in range(CLUSTERS)))
    for low, high in found["intervals"]["idro+keep"]:  # the same values but for 0.3 in each
        assert low == pytest.approx(0.3)
        assert high == pytest.approx(0.3)
    printed = capsys.readouterr().out
    assert "+0.300" in printed
    assert printed.splitlines()[1].startswith("initial checkpoint")


def test_where_the_runs_have_groups_by_name_the_worst_group_is_compared(main, tmp_path, capsys):
    write_run(tmp_path / "erm-1", 1, 0.1)
    assignment = np.where(np.arange(QUERIES) < 10, -1, ASSIGNMENT)
    clusters = tmp_path / "erm-1" / "ann_data" / "clusters_0"
    NamedGroups(["law", "code"], np.array([5, 5]), ASSIGNMENT).save(clusters, assignment)
    main("--out_dir", tmp_path, "--step", 9, "--objectives", f"erm={tmp_path}/erm-1")
    values = json.loads((tmp_path / "erm-1/results/dev/step-9/per_query.json").read_text())["queries"]
    reached = np.array([value["mrr@10"] for value in values.values()])
    found = json.loads((tmp_path / "objectives.json").read_text())
    assert found["columns"][1] == "worst group MRR@10"
    assert found["reached"]["erm"][0][1] == pytest.approx(min(reached[assignment == g].mean() for g in range(2)))
    assert "worst group MRR@10" in capsys.readouterr().out


def test_without_clusters_of_some_size_the_interval_of_the_mean_is_that_of_normal_theory():
    generator = np.random.default_rng(3)
    ids = [str(i) for i in range(400)]
    clusters = DevClusters(ids, np.zeros(400, np.int64), 1)
    base = generator.random((1, 400))
    other = base + generator.normal(0.1, 0.2, (1, 400))
    found = intervals({"a": Values(base, {}), "b": Values(other, {})}, clusters, seed=0)["b"]
    difference = (other - base)[0]
    error = difference.std() / 20
    np.testing.assert_allclose(found[0], difference.mean() + np.array([-1.96, 1.96]) * error, atol=0.2 * error)
    assert np.isnan(found[2]).all()  # no zero-shot collection


def test_without_zero_shot_collections_their_column_is_empty(main, tmp_path, capsys):
    for name, gain in (("erm", 0.1), ("idro", 0.4)):
        write_run(tmp_path / name, 1, gain)
        shutil.rmtree(tmp_path / name / "results" / "zero_shot")
    main("--out_dir", tmp_path, "--step", 9, "--objectives", f"erm={tmp_path}/erm", f"idro={tmp_path}/idro")
    assert all(line.split()[-1] == "-" for line in capsys.readouterr().out.splitlines() if line.startswith("idro"))
    assert json.loads((tmp_path / "objectives.json").read_text())["intervals"]["idro"][2] == [None, None]


@pytest.mark.parametrize("path", ["dev/step-9", "zero_shot/a b/step-9", "dev/step-0"])
def test_an_objective_of_which_a_checkpoint_has_collapsed_says_so(main, tmp_path, capsys, path):
    for name, gain in (("erm", 0.1), ("idro", 0.4)):
        for seed in (1, 2):
            write_run(tmp_path / f"{name}-{seed}", seed, gain)
    run = "erm-1" if path.endswith("-0") else "idro-2"
    metrics = RunMetrics("r", path, "c", 3, {"mrr@10": 0.5}, collapsed=True)
    write_metrics(tmp_path / run / "results" / path / "metrics.json", metrics)
    objectives = [f"{name}={tmp_path}/{name}-1,{tmp_path}/{name}-2" for name in ("erm", "idro")]
    main("--out_dir", tmp_path, "--step", 9, "--objectives", *objectives)
    collapsed = "initial checkpoint" if path.endswith("-0") else "idro"
    assert json.loads((tmp_path / "objectives.json").read_text())["collapsed"] == [collapsed]
    for text in (capsys.readouterr().out, (tmp_path / "objectives.md").read_text()):
        lines = [line.strip("| ") for line in text.splitlines()]
        assert sum(line.startswith(f"{collapsed} {COLLAPSED}") for line in lines) == (2 if collapsed == "idro" else 1)
        assert text.count(COLLAPSED) == (2 if collapsed == "idro" else 1)


def test_seeds_are_resampled_in_pairs():
    base = np.random.default_rng(3).random((2, 30))
    gains = np.array([[0.1], [0.3]])  # of the first seed on every query, and of the second
    clusters = DevClusters([str(i) for i in range(30)], np.zeros(30, np.int64), 1)
    found = intervals({"a": Values(base, {}), "b": Values(base + gains, {})}, clusters, seed=0)["b"]
    np.testing.assert_allclose(found[0], [0.1, 0.3])


def test_measures_are_those_of_the_chosen_seeds_and_queries():
    clusters = DevClusters(["a", "b", "c"], np.zeros(3, np.int64), 1)
    values = Values(np.array([[1, 0, 0.5], [0, 0, 1]], float), {"x": np.array([[0.5, 1], [0, 0]])})
    found = measure(values, clusters, np.array([0, 0]), {"": np.array([0, 1]), "x": np.array([1, 1])})
    np.testing.assert_array_equal(found, [[0.5, np.nan, 1]] * 2)


def test_which_clusters_are_large_enough_is_asked_of_all_queries():
    clusters = DevClusters([str(i) for i in range(21)], np.repeat([0, 1], (12, 9)), 2)
    values = Values(np.repeat([[0.8, 0.2]], (12, 9), axis=1), {})
    few_of_the_large, many_of_the_small = np.array([0, 1]), np.repeat(np.arange(12, 21), 2)
    for chosen in (few_of_the_large, np.concatenate([few_of_the_large, many_of_the_small])):
        assert measure(values, clusters, np.array([0]), {"": chosen})[0, 1] == 0.8


def test_runs_that_were_measured_on_other_queries_are_refused_by_the_file(main, tmp_path):
    for name in ("erm", "idro"):
        write_run(tmp_path / name, 1, 0.1)
    runs = "--objectives", f"erm={tmp_path}/erm", f"idro={tmp_path}/idro"
    for collection, change, reason in (
        ("zero_shot/a b", lambda values: values.pop("x"), "is of other queries than the first run's"),
        ("dev", lambda values: values.popitem(), "is of other queries than the first run's"),
        (
            "zero_shot/a b",
            lambda values: [value.update(p=value.pop("ndcg@10")) for value in values.values()],
            "only p",
        ),
    ):
        path = tmp_path / "idro" / "results" / collection / "step-9" / "per_query.json"
        kept = path.read_text()
        values = json.loads(kept)["queries"]
        change(values)
        write_json(path, {"queries": values})
        with pytest.raises(InputError, match=reason) as raised:
            main("--out_dir", tmp_path, "--step", 9, *runs)
        assert str(path) in str(raised.value)
        path.write_text(kept)
    shutil.rmtree(tmp_path / "idro" / "results" / "zero_shot")
    with pytest.raises(InputError, match=r"zero_shot/a b/step-9/per_query\.json"):
        main("--out_dir", tmp_path, "--step", 9, *runs)


def test_a_run_that_is_of_another_objective_or_seed_than_is_said_is_refused(main, tmp_path):
    for name in ("erm", "idro+keep"):
        for seed in (1, 2):
            write_run(tmp_path / f"{name}-{seed}", seed, 0.1)
    one, two, kept, other = (tmp_path / name for name in ("erm-1", "erm-2", "idro+keep-1", "idro+keep-2"))
    for objectives, reason in (
        ([f"erm={one}", f"idro={kept}"], r"idro\+keep-1: was trained by idro\+keep, and is given as a run of idro$"),
        ([f"ERM={kept}"], r"idro\+keep-1: was trained by idro\+keep, and is given as a run of ERM$"),
        ([f"idro+keep={one}"], r"erm-1: was trained by erm, and is given as a run of idro\+keep$"),
        ([f"mine={kept},{two}"], r"erm-2: was trained by erm, and is given as a run of mine$"),
        ([f"erm={one},{two}", f"ours={other},{kept}"], "of ours have the seeds 2, 1, those of erm 1, 2; give"),
        ([f"erm={one},{one}"], "of erm have the seeds 1, 1,"),
    ):
        with pytest.raises(InputError, match=reason):
            main("--out_dir", tmp_path, "--step", 9, "--objectives", *objectives)
    main("--out_dir", tmp_path, "--step", 9, "--objectives", f"all alike={one},{two}", f"idro+keep={kept},{other}")
    assert json.loads((tmp_path / "objectives.json").read_text())["baseline"] == "all alike"


def test_unequal_numbers_of_seeds_are_refused(main, tmp_path):
    with pytest.raises(InputError, match="the same number of runs"):
        main("--out_dir", tmp_path, "--step", 9, "--objectives", "erm=a,b", "idro=c")
    with pytest.raises(InputError, match="given twice"):
        main("--out_dir", tmp_path, "--step", 9, "--objectives", "erm=a", "erm=c")
    with pytest.raises(InputError, match="'initial checkpoint' is the name of what all begin with"):
        main("--out_dir", tmp_path, "--step", 9, "--objectives", "initial checkpoint=a", "erm=c")
