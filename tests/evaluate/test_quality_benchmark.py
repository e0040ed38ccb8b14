"""The benchmark of quality, small: runs, going on, refusals, and figures that are computed anew from the runs."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from evaluate import compare_objectives
from evaluate.benchmarks import quality, table
from evaluate.benchmarks.own_recipe import Contender
from evaluate.benchmarks.quality_budgets import Budgets, Costs, as_json
from evaluate.benchmarks.quality_table import INITIAL, LIBRARY, best_rate
from evaluate.benchmarks.watched_work import Work, watch
from model.reading import Reading
from tests.tiny_run import save_tiny_checkpoint
from utils.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

OURS, BLOCKS = "pairwise+idro", "contrastive+dro-greedy+normalized"  # the latter is not compared by default
SMALL = (
    *("--rates", "1e-3", "5e-3", "--seeds", 2, "--steps", 6, "--samples", 4, "--negatives", 2, "--topk", 8),
    *("--clusters", 2, "--max_seq_length", 16, "--max_query_length", 16, "--no_cuda"),
    *("--queries_together", 2),
)


def call(*flags) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quality.py", *map(str, flags)])
        quality.main()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Two collections of short texts, in which a query is its passage without the last word, and a checkpoint."""
    folder, generator = tmp_path_factory.mktemp("quality"), np.random.default_rng(0)
    msmarco, beir = folder / "msmarco", folder / "docs"
    words = [f"{a}{b}" for a in "abcdefgh" for b in "aeiou"]
    passages = [" ".join(generator.choice(words, 6)) for _ in range(60)]
    queries = [" ".join(passage.split()[:-1]) for passage in passages]
    msmarco.mkdir()
    (msmarco / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(passages)))
    for split, rows in (("train", range(24)), ("dev.small", range(24, 60))):
        (msmarco / f"queries.{split}.tsv").write_text("".join(f"{i}\t{queries[i]}\n" for i in rows))
        (msmarco / f"qrels.{split}.tsv").write_text("".join(f"{i}\t0\t{i}\t1\n" for i in rows))
    (beir / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", passages[30:]), ("queries", queries[30:])):
        lines = ({"_id": f"{i}", "title": "", "text": text} for i, text in enumerate(texts))
        (beir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (beir / "qrels" / "test.tsv").write_text("q\tp\ts\n" + "".join(f"{i}\t{i}\t1\n" for i in range(30)))
    return {
        "collection_dir": msmarco,
        "zero_shot_dir": beir,
        "checkpoint": save_tiny_checkpoint(folder, "rdot_nll_condenser", reading=Reading("mean", normalized=True)),
    }


@pytest.fixture(scope="module")
def here():
    """All in this process, which has the libraries already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "in_child", lambda function, *arguments: function(*arguments))
        patch.setattr(quality, "CALIBRATION_STEPS", 2)
        patch.setattr(compare_objectives, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def flags(places, here, tmp_path_factory) -> list:
    """Those of a benchmark that was run."""
    places = places | {"out_dir": tmp_path_factory.mktemp("out")}
    flags = [part for name, place in places.items() for part in (f"--{name}", place)]
    flags += [*SMALL, "--contenders", LIBRARY, OURS]
    call(*flags)
    return flags


def out_dir(flags: list) -> Path:
    return flags[flags.index("--out_dir") + 1]


def results(flags: list) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out_dir(flags) / "quality" / "runs").iterdir())]


def test_the_table_follows_from_the_runs(flags):
    content = json.loads((out_dir(flags) / "quality.json").read_text())
    runs, initial = results(flags), next(one for one in results(flags) if one["contender"] == INITIAL)
    assert content["initial"][0] == pytest.approx(np.mean([*initial["dev"].values()]))
    (sitting,) = json.loads((out_dir(flags) / "quality" / "calibration.json").read_text())["sittings"]
    library, own = sitting["library"], sitting["contenders"][OURS]
    limit = {
        "seconds": library["mining_seconds"] + library["fixed_seconds"] + 6 * library["step_seconds"],
        "texts": library["mining_texts"] + 6 * library["step_texts"],
    }
    before = {
        "seconds": own["tokenizing_seconds"] + own["mining_seconds"] + own["fixed_seconds"],
        "texts": own["mining_texts"],
    }
    assert own["mining_texts"] == library["mining_texts"] == 60 + 24
    for budget, of_budget in content["budgets"].items():
        assert list(of_budget) == [LIBRARY, OURS]
        unit = {"seconds": "step_seconds", "texts": "step_texts"}[budget]
        assert of_budget[OURS]["steps"] == int((limit[budget] - before[budget]) / own[unit])
        chosen = {}
        for name, one in of_budget.items():
            same = [run for run in runs if (run["contender"], run.get("steps")) == (name, one["steps"])]
            first = {run["rate"]: np.mean([*run["dev"].values()]) for run in same if run["seed"] == 1}
            assert one["rate"] == max(first, key=first.get)
            assert one["tried"] == {f"{rate:g}": pytest.approx(mean) for rate, mean in first.items()}
            chosen[name] = [run for run in same if run["rate"] == one["rate"]]
            assert [run["seed"] for run in chosen[name]] == one["seeds"] == [1, 2]
            dev, _, zero_shot = np.transpose(one["reached"])
            assert dev == pytest.approx([np.mean([*run["dev"].values()]) for run in chosen[name]])
            assert zero_shot == pytest.approx([np.mean([*run["zero_shot"].values()]) for run in chosen[name]])
        gain, _, _ = of_budget[OURS]["difference"]
        by_hand = [
            np.mean([ours["dev"][query] - theirs["dev"][query] for query in theirs["dev"]])
            for ours, theirs in zip(chosen[OURS], chosen[LIBRARY], strict=True)
        ]
        assert gain == pytest.approx(np.mean(by_hand))
        low, high = of_budget[OURS]["interval"][0]
        assert low < gain < high


def test_begun_again_it_makes_what_is_missing_and_adds_what_is_asked_for(flags, capsys):
    folder = out_dir(flags) / "quality"
    made = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    sitting = (folder / "calibration.json").read_text()
    gone = next(path for path in made if path.name.startswith(OURS) and path.name.endswith("2.json"))
    before = json.loads(gone.read_text())
    gone.unlink()
    call(*flags)
    again = json.loads(gone.read_text())
    assert again["dev"] == before["dev"], "a run's result follows from its settings"
    assert again["texts"] == before["texts"]
    assert {path: path.stat().st_mtime_ns for path in made if path != gone} == {
        path: at for path, at in made.items() if path != gone
    }
    assert {*(folder / "runs").iterdir()} == {*made}
    assert (folder / "calibration.json").read_text() == sitting
    assert not list(folder.glob("work-*"))

    call(*flags, "--contenders", BLOCKS, "--budgets", "texts", "--seeds", 1)
    first, second = json.loads((folder / "calibration.json").read_text())["sittings"]
    assert [first] == json.loads(sitting)["sittings"]
    assert list(second["contenders"]) == [BLOCKS]
    content = json.loads((out_dir(flags) / "quality.json").read_text())
    assert list(content["budgets"]["texts"]) == [LIBRARY, OURS, BLOCKS]
    assert list(content["budgets"]["seconds"]) == [LIBRARY, OURS]
    assert content["budgets"]["texts"][BLOCKS]["compared_seeds"] == [1]
    costs = Costs(**first["contenders"][OURS])
    assert content["budgets"]["seconds"][OURS]["seconds"] == costs.seconds(
        content["budgets"]["seconds"][OURS]["steps"]
    )
    assert content["budgets"]["seconds"][LIBRARY]["seconds"] == Costs(**first["library"]).seconds(6)
    written = (out_dir(flags) / "quality.md").read_text()
    assert f"| {BLOCKS} | 1 |" in written
    call(*flags)
    assert (out_dir(flags) / "quality.md").read_text() == written, "all runs are shown, whichever are asked for"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["table.py", "--out_dir", str(out_dir(flags))])
        table.main()
    assert written in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("--steps", 7), "steps was 6 and is 7"),
        (("--max_relative_score", 0.9), "max_relative_score was 0.95 and is 0.9"),
        (("--collection_dir", "other"), "has another content"),
        (("--contenders", "pairwise+erm+often"), "is not LOSS"),
        (("--samples", 5, "--contenders", BLOCKS), "--samples is 5, and a block has 2 lines"),
        (("--budgets", "tokens"), "--budgets 'tokens'"),
        (("--steps", 1), "at least 2"),
    ],
)
def test_other_settings_in_the_folder_and_misuse_are_refused(flags, places, tmp_path, changed, reason):
    if "other" in changed:
        changed = "--collection_dir", tmp_path
        for path in places["collection_dir"].iterdir():
            (tmp_path / path.name).write_text(path.read_text().replace("aa", "bb"))
    with pytest.raises(InputError, match=reason):
        call(*flags, *changed)


def benchmark_of(flags: list, places: dict[str, Path]) -> quality.Benchmark:
    args = quality.Arguments(out_dir=str(out_dir(flags)), **{name: str(place) for name, place in places.items()})
    args.max_seq_length = args.max_query_length = 16
    args.clusters, args.samples = 2, 4
    return quality.Benchmark(args, torch.device("cpu"))


def test_rounds_of_mining_and_training_share_the_steps(flags, places, tmp_path):
    benchmark = benchmark_of(flags, places)
    what = Contender.of("pairwise+balanced"), tmp_path, benchmark.embeddings, 2, 6, 1e-3, 1
    first_mining, _, second_mining, _ = benchmark.own.run(*what)
    assert benchmark.own.trained(tmp_path).name == "checkpoint-6"
    mined_with = [json.loads((tmp_path / "ann_data" / f"ann_ndcg_{i}").read_text())["step"] for i in range(2)]
    assert mined_with == [0, 3]
    assert (first_mining.texts, second_mining.texts) == (0, 60 + 24 + 36), "the first one's are shared"


def test_what_the_library_saves_is_read_as_the_checkpoint_is(flags, places, tmp_path):
    SentenceTransformer(str(places["checkpoint"])).save_pretrained(str(tmp_path / "saved"))
    own = benchmark_of(flags, places).own
    found, _ = own.evaluate(tmp_path / "saved", own.stores, "dev", tmp_path / "evaluation")
    initial = next(one for one in results(flags) if one["contender"] == INITIAL)
    assert found == initial["dev"]


@pytest.mark.parametrize("budget", ["seconds", "texts"])
@pytest.mark.parametrize("episodes", [1, 3])
def test_steps_are_the_most_that_are_within_the_budget(budget, episodes):
    library, own = Costs(0, 40.0, 900, 2.0, 3.5, 96), Costs(4.0, 21.0, 300, 1.5, 0.75, 90.5)
    budgets = Budgets.read([as_json(library, {"a": own})], 50, episodes)

    def spent(costs: Costs, steps: int, episodes: int) -> float:
        """Episode by episode and step by step."""
        total = costs.tokenizing_seconds if budget == "seconds" else 0.0
        for _ in range(episodes):
            total += costs.mining_seconds + costs.fixed_seconds if budget == "seconds" else costs.mining_texts
            for _ in range(steps):
                total += costs.step_seconds if budget == "seconds" else costs.step_texts
        return total

    limit, most = spent(library, 50, 1), 0
    while spent(own, most + 1, episodes) <= limit:
        most += 1
    assert budgets.steps(budget, "a") == most * episodes
    too_little = Budgets.read([as_json(Costs(0, 1, 1, 0, 1, 1), {"a": own})], 2, episodes)
    assert too_little.most_steps(budget, "a") == 0
    with pytest.raises(InputError, match="leaves a no step"):
        too_little.steps(budget, "a")


def test_a_steps_seconds_are_the_median_between_its_first_calls():
    ends = [0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 6.0, 6.1, 6.2, 8.0, 8.1, 8.2]  # three calls a step, the first step slow
    assert Work(9.0, 0, tuple(ends)).seconds_a_step(4) == 2.0
    costs = Costs.of(Work(3.0, 50, ()), Work(9.0, 24, tuple(ends)), 4, not_counted=10)
    assert costs == Costs(0.0, 3.0, 40, 1.0, 2.0, 6.0)


def test_the_rate_that_is_kept_is_the_first_seeds_best_on_dev():
    runs = [
        {"rate": rate, "seed": seed, "dev": {"a": value, "b": 0.5}}
        for rate, seed, value in ((1e-5, 1, 0.4), (1e-4, 1, 0.6), (1e-3, 1, 0.6), (1e-5, 2, 0.9))
    ]
    assert best_rate(runs) == 1e-4


def test_a_childs_mistake_is_told_and_its_result_handed_over():
    given = []
    quality._hand_over(lambda a, b: a + b, (1, 2), lambda: None, given.append)
    quality._hand_over(lambda: Contender.of("nothing"), (), lambda: None, given.append)
    assert given[0] == 3
    assert isinstance(given[1], InputError)


def test_only_calls_of_an_encoder_are_counted_and_the_seconds_are_those_of_the_work():
    work = watch(lambda: (nn.Linear(2, 2)(torch.zeros(3, 2)), time.sleep(0.05)))
    assert (work.texts, work.calls) == (0, ())
    assert 0.05 <= work.seconds < 5
