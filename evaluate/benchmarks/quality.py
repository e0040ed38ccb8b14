"""How good models are that ours and sentence-transformers train in the same time, or on as many encoded texts.

    python data/demo_data.py --dev_queries 1500 --msmarco_dir OUT/msmarco --beir_dir OUT/python-docs
    python evaluate/benchmarks/quality.py --collection_dir OUT/msmarco --zero_shot_dir OUT/python-docs \\
        --checkpoint CHECKPOINT --out_dir OUT --fp16

commands/run_benchmarks.sh quality does both. All contenders begin with the same checkpoint, read as its own files
say. All take as many samples a step, and use AdamW, a linear warm-up over a tenth of the steps and linear decay:

    sentence-transformers   mine_hard_negatives and MultipleNegativesRankingLoss as the library's documentation
                            advises (evaluate/benchmarks/library_recipe.py), for --steps steps
    LOSS+OBJECTIVE          ours by drivers/run_ann_data_gen.py and drivers/run_ann.py, for as many steps as the
                            budget allows (evaluate/benchmarks/own_recipe.py)

Budgets: with `seconds`, tokenizing, mining and training may take as long as the library's mining and training. With
`texts`, as many texts may go through the encoder. Ours encodes a text once a batch, and it counts once; the dev
queries, with which our miner measures the checkpoint, do not count.

The steps of a budget are found once: contenders mine and train a few steps in turn, and quality/calibration.json
keeps what that took; the machine must have nothing else to do then. From there on, a run's steps do not depend on
what else the machine does, and the table's seconds are what the steps take by the calibration. Runs of ours share the
initial checkpoint's embeddings, and each is charged with all of mining.

Each contender tries all --rates with seed 1, and keeps the one with the best dev nDCG@10 for the other seeds. Our
evaluator measures all models. quality.json and quality.md have means over seeds, and the differences from
sentence-transformers with intervals over seeds and queries (see evaluate/compare_objectives.py).

Begun again, the command goes on. Contenders, budgets, rates and seeds can be added then, and the tables show all runs
in the folder. A contender that is added is calibrated together with the library, and has the budget that this gives.
A run is a JSON file in OUT/quality/runs, with the values of every query.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from evaluate.benchmarks import contenders
from evaluate.benchmarks.library_recipe import LibraryRecipe
from evaluate.benchmarks.own_recipe import Contender, OwnRecipe
from evaluate.benchmarks.quality_budgets import Budgets, Costs, as_json
from evaluate.benchmarks.quality_table import (
    BUDGETS,
    FIRST_SEED,
    INITIAL,
    LIBRARY,
    Runs,
    best_rate,
    dev_mean,
    page,
    summarize,
)
from evaluate.dev_clusters import DevClusters
from model.encoders import load_encoder
from model.losses import LOSSES
from model.reading import AUTO, find_reading
from utils.runtime.arguments import DeviceArguments, LengthArguments, check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.precision import choose_precision
from utils.samples import Blocks
from utils.stores.checkpoint import fingerprint_of_weights
from utils.stores.files import atomic_file, atomic_folder, read_json, write_json
from utils.stores.lock import hold_lock
from utils.stores.token_store import TokenStore

OURS = [
    *("pairwise+erm", "pairwise+idro", "contrastive+erm", "contrastive+balanced", "contrastive+idro"),
    "contrastive+idro+keep+normalized",
]
CALIBRATION_STEPS = 48  # of 16, texts a step were 4% off
PLACES = ("out_dir", "collection_dir", "zero_shot_dir", "checkpoint")
GROWS = ("contenders", "budgets", "rates", "seeds")  # in a folder that is gone on with
PEAK_SIZE = 1024  # of the products whose rate tells whether the machine was left alone


@dataclass
class Arguments(DeviceArguments, LengthArguments):
    out_dir: str = required("where quality.json and quality.md go; all else goes into its folder quality")
    collection_dir: str = required("the training collection, in MS MARCO's files")
    zero_shot_dir: str = required("the zero-shot collection, in BEIR's layout")
    checkpoint: str = required("the checkpoint to begin with: a folder or a hub name")
    contenders: list[str] = field(
        default_factory=lambda: [LIBRARY, *OURS],
        metadata={"help": f"{LIBRARY}, which all are compared with, and ours"},
    )
    budgets: list[str] = field(default_factory=lambda: [*BUDGETS], metadata={"help": "seconds, texts"})
    rates: list[float] = field(
        default_factory=lambda: [2e-5, 5e-5, 1e-4], metadata={"help": "peak learning rates that are tried"}
    )
    seeds: int = option(3, "seeds of each contender, from 1 on")
    steps: int = option(100, "training steps of sentence-transformers, from which the budgets follow")
    samples: int = option(32, "triplets, or lines of the mined file, a training step")
    episodes: int = option(1, "ours: rounds of mining and training that the budget is divided into")
    negatives: int = option(5, "negatives mined a query, by both")
    topk: int = option(100, "ours: passages ranked a query, from which negatives are drawn")
    max_relative_score: float = option(0.95, "ours: the miner's filter; 0: none")
    clusters: int = option(
        16, "ours: clusters of the training queries; the worst cluster is looked for among as many"
    )
    queries_together: int = option(16, "ours, contrastive: lines of a block")
    negatives_a_query: int = option(1, "ours, contrastive: negatives of a line")
    batch_size: int = option(128, "texts encoded at once")

    def __post_init__(self) -> None:
        counts = ("seeds", "steps", "samples", "episodes", "negatives", "topk", "clusters", "batch_size")
        check_at_least_one(self, *counts, "queries_together", "negatives_a_query")
        for name in set(self.contenders) - {LIBRARY}:
            if LOSSES[Contender.of(name).loss].samples is Blocks and self.samples % self.queries_together:
                raise InputError(
                    f"--samples is {self.samples}, and a block has {self.queries_together} lines "
                    f"(--queries_together), so that steps of {name} would have fewer; give a multiple of it"
                )
        for name in self.budgets:
            if name not in BUDGETS:
                raise InputError(f"--budgets {name!r}: there are {', '.join(BUDGETS)}")
        if self.steps < 2:
            raise InputError("--steps is 1; at least 2 are needed")


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called in a process of its own; its `InputError` is raised here."""
    with contenders.Processes({"run": (_hand_over, function, arguments)}) as processes:
        given = processes.take_turns()["run"]
    if isinstance(given, InputError):
        raise given
    return given


def _hand_over(
    function: Callable[..., Any], arguments: tuple, wait: Callable[[], object], give: Callable[[Any], object]
) -> None:
    wait()
    try:
        give(function(*arguments))
    except InputError as error:
        give(error)


class Benchmark:
    """The folder of a benchmark, its recipes, and what is done there once or for each run."""

    def __init__(self, args: Arguments, device: torch.device) -> None:
        self.args, self.device, self.precision = args, device, choose_precision(args.fp16, device)
        self.folder = Path(args.out_dir, "quality")
        self.stores, self.zero_shot = self.folder / "stores", self.folder / "zero-shot"
        self.initial, self.embeddings = self.folder / "initial", self.folder / "embeddings"
        self.mined = self.folder / "library-mined"
        self.runs = Runs(self.folder / "runs")
        shared = {name: getattr(args, name) for name in ("checkpoint", "negatives", "batch_size", "samples")}
        self.library = LibraryRecipe(
            max_length=args.max_seq_length, precision=self.precision, device=device, **shared
        )
        own = ("max_seq_length", "max_query_length", "topk", "max_relative_score", "clusters")
        self.own = OwnRecipe(
            stores=self.stores,
            device_flags=tuple(f"--{name}={str(getattr(args, name)).lower()}" for name in ("fp16", "no_cuda")),
            **{name: getattr(args, name) for name in (*own, "queries_together", "negatives_a_query")},
            **shared,
        )

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A folder that is gone at the end of the block."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="work-") as name:
            yield Path(name)

    def prepare(self) -> None:
        """Token stores; the initial checkpoint's clusters, embeddings and values; the settings are held to."""
        for leftover in self.folder.glob("work-*"):
            shutil.rmtree(leftover)
        in_use = self.hold_settings()
        in_child(self.own.tokenize, "msmarco", Path(self.args.collection_dir), self.stores, in_use)
        in_child(self.own.tokenize, "beir", Path(self.args.zero_shot_dir), self.zero_shot, in_use)
        if not (self.initial / "ann_data" / "ann_ndcg_0").exists():
            in_child(self.own.mine, "pairwise", self.initial, self.embeddings, FIRST_SEED)
        if not self.runs.find(INITIAL):
            with self.work_folder() as folder:
                found = in_child(self.evaluate, self.args.checkpoint, folder)
            self.runs.write({"contender": INITIAL, **found})

    def hold_settings(self) -> bool:
        """Notes the settings, and tells whether there were some; `InputError` where those were others."""
        settings = {name: value for name, value in vars(self.args).items() if name not in (*PLACES, *GROWS)}
        reading = find_reading(self.args.checkpoint, AUTO)
        if reading.query_prompt or reading.passage_prompt:
            raise InputError(f"{self.args.checkpoint} has prompts, which {LIBRARY} is not given here")
        encoder, _ = load_encoder(self.args.checkpoint, reading)
        settings["weights"] = fingerprint_of_weights(self.args.checkpoint, encoder)
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
            return False
        noted = read_json(path)
        names = sorted(name for name in {*noted, *settings} if noted.get(name) != settings.get(name))
        if names:
            differences = "; ".join(f"{name} was {noted.get(name)} and is {settings.get(name)}" for name in names)
            raise InputError(f"holds runs with other settings; give those, or another --out_dir: {differences}", path)
        return True

    def calibrate(self) -> Budgets:
        """What the budgets are, and what work costs; measured for those contenders that it is not yet known of."""
        path = self.folder / "calibration.json"
        sittings = read_json(path)["sittings"] if path.exists() else []
        known = {name for sitting in sittings for name in sitting["contenders"]}
        missing = [name for name in self.args.contenders if name not in (LIBRARY, *known)]
        if missing or not sittings:
            sittings.append(self.sit(missing))
            write_json(path, {"sittings": sittings})
        return Budgets.read(sittings, self.args.steps, self.args.episodes)

    def sit(self, names: list[str]) -> dict:
        """A sitting: the library and these contenders mine and train a few steps in turn, each in its own process."""
        steps, rate, dev_queries = CALIBRATION_STEPS, self.args.rates[0], len(TokenStore(self.stores / "dev-query"))
        collection, of_machine, mined, costs = Path(self.args.collection_dir), [], {}, {}

        def take(function: Callable[..., Any], *arguments: Any) -> Any:
            of_machine.append(contenders.product_rate(PEAK_SIZE, self.precision.dtype, self.device))
            return in_child(function, *arguments)

        say(f"calibration: {LIBRARY} and {', '.join(names) or 'none of ours'} mine, and train {steps} steps each")
        with self.work_folder() as folder:
            with atomic_folder(self.mined) as into:
                library = take(self.library.mine, collection, into)
            tokenizing = take(self.own.tokenize, "msmarco", collection, folder / "stores").seconds
            for loss in dict.fromkeys(Contender.of(name).loss for name in names):
                mined[loss] = take(self.own.mine, loss, folder / loss, folder / f"{loss}-embeddings", FIRST_SEED)
            training = take(self.library.train, self.mined, folder / "model", steps, rate, FIRST_SEED)
            for name in names:
                contender = Contender.of(name)
                shutil.rmtree(folder / contender.loss / "models", ignore_errors=True)
                trained = take(self.own.train, contender, folder / contender.loss, 0, 1, steps, rate, FIRST_SEED)
                costs[name] = Costs.of(mined[contender.loss], trained, steps, tokenizing, dev_queries)
        contenders.warn_if_busy(of_machine)
        return as_json(Costs.of(library, training, steps), costs)

    def run(self, name: str, steps: int, rate: float, seed: int, budgets: Budgets) -> None:
        """Makes a run where it was not made."""
        if self.runs.find(name, steps, rate, seed):
            return
        with self.work_folder() as folder:
            if name == LIBRARY:
                model, costs = folder / "model", budgets.library
                works = [in_child(self.library.train, self.mined, model, steps, rate, seed)]
                not_counted = 0
            else:
                what = Contender.of(name), folder, self.embeddings, self.args.episodes, steps, rate, seed
                works, costs = in_child(self.own.run, *what)[1:], budgets.costs(name)  # the first mining is charged
                model = self.own.trained(folder)
                not_counted = (self.args.episodes - 1) * len(TokenStore(self.stores / "dev-query"))
            result = {"contender": name, "steps": steps, "rate": rate, "seed": seed}
            result["seconds"] = costs.tokenizing_seconds + costs.mining_seconds + sum(one.seconds for one in works)
            result["texts"] = costs.mining_texts + sum(one.texts for one in works) - not_counted
            result |= in_child(self.evaluate, model, folder)
        self.runs.write(result)
        say(
            f"{name}, {steps} steps, rate {rate:g}, seed {seed}: dev nDCG@10 {dev_mean(result):.4f}; mining and "
            f"training {result['seconds']:.0f} s, evaluation {result['evaluation_seconds']:.0f} s"
        )

    def run_all(self, budgets: Budgets) -> None:
        """Of each contender and budget the rates with the first seed, then the best of them with the other seeds."""
        steps_of = {  # the library's are the same under each budget
            (name, budgets.library_steps if name == LIBRARY else budgets.steps(budget, name)): None
            for budget in self.args.budgets
            for name in self.args.contenders
        }
        self.say_how_long(budgets, [*steps_of])
        for name, steps in steps_of:
            for rate in self.args.rates:
                self.run(name, steps, rate, FIRST_SEED, budgets)
            rate = best_rate(self.runs.of(name, steps))
            for seed in range(FIRST_SEED + 1, FIRST_SEED + self.args.seeds):
                self.run(name, steps, rate, seed, budgets)

    def say_how_long(self, budgets: Budgets, steps_of: list[tuple[str, int]]) -> None:
        """Says how many steps contenders make, and about how long all runs take that are not there."""
        evaluation, total, seconds = self.runs.find(INITIAL)["evaluation_seconds"], 0, 0.0
        for name, steps in steps_of:
            costs = budgets.library if name == LIBRARY else budgets.costs(name)
            there = sum(one["rate"] in self.args.rates for one in self.runs.of(name, steps))
            count = max(0, len(self.args.rates) + self.args.seeds - 1 - there)
            total += count
            seconds += count * (costs.fixed_seconds + steps * costs.step_seconds + evaluation)
            say(f"{name}: {steps} steps of {costs.step_seconds:.2f} s, {count} runs to make")
        say(f"{total} runs to make: about {seconds / 60:.0f} minutes")

    def evaluate(self, model: Path | str, folder: Path) -> dict:
        """The nDCG@10 of each query on dev and zero shot, and whether the model has collapsed on either."""
        start, values, collapsed = time.perf_counter(), {}, []
        for name, stores, split in (("dev", self.stores, "dev"), ("zero_shot", self.zero_shot, "test")):
            values[name], has_collapsed = self.own.evaluate(model, stores, split, folder / name)
            collapsed.append(has_collapsed)
        return {**values, "collapsed": any(collapsed), "evaluation_seconds": time.perf_counter() - start}

    def summarize(self, budgets: Budgets) -> dict:
        """What all runs in the folder say."""
        clusters = DevClusters.read(self.initial / "ann_data" / "clusters_0", self.stores / "dev-query")
        clusters = clusters.only(self.runs.find(INITIAL)["dev"])
        return summarize(self.runs, budgets, clusters)


def main() -> None:
    args = parse(Arguments, __doc__)
    device = contenders.set_up_one_process(args.no_cuda)
    benchmark = Benchmark(args, device)
    hold_lock(benchmark.folder)
    benchmark.prepare()
    budgets = benchmark.calibrate()
    benchmark.run_all(budgets)
    result = contenders.describe(args, ("torch", "transformers", LIBRARY), PLACES, device)
    result["dtype"] = str(benchmark.precision.dtype).removeprefix("torch.")
    result["queries"] = {name: len(benchmark.runs.find(INITIAL)[name]) for name in ("dev", "zero_shot")}
    result |= benchmark.summarize(budgets)
    write_json(Path(args.out_dir, "quality.json"), result)
    with atomic_file(Path(args.out_dir, "quality.md")) as handle:
        handle.write(page(result))
    print(page(result))


if __name__ == "__main__":
    run(main)
