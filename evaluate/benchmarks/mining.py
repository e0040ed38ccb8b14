"""How fast an episode is mined: ours and sentence-transformers' own miner, on the same texts and checkpoint.

    python data/demo_data.py --msmarco_dir OUT/msmarco --beir_dir OUT/python-docs
    python data/msmarco_data.py --data_dir OUT/msmarco --out_data_dir OUT/preprocessed \\
        --model_type auto --model_name_or_path CHECKPOINT
    python evaluate/benchmarks/mining.py --collection_dir OUT/msmarco --data_dir OUT/preprocessed \\
        --checkpoint CHECKPOINT --out_dir OUT

commands/run_benchmarks.sh does all of this. The contenders take turns. Each is a process of its own from its start to
its end, which also loads its libraries, the model and the data:

    ours                     drivers/run_ann_data_gen.py: encodes passages, training and dev queries from token
                             stores, searches for both sets of queries, evaluates the dev queries, clusters the
                             training queries, draws negatives and writes the mined file
    sentence-transformers    evaluate/benchmarks/library_miner.py: tokenizes and encodes passages and training
                             queries, searches with faiss, draws negatives and writes them as texts
    tokenizing               data/msmarco_data.py: makes the token stores; it is run once a collection, and the other
                             two once an episode

All read the checkpoint as its own files say. Both miners rank as many passages a query, take out all of its relevant
ones and draw as many negatives at random from the rest.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import load_from_disk

from evaluate.benchmarks import contenders, processes
from evaluate.benchmarks.processes import Stage
from model.reading import AUTO
from utils.runtime import distributed
from utils.runtime.arguments import DeviceArguments, LengthArguments, check_at_least_one, option, parse, required
from utils.runtime.errors import run
from utils.runtime.logs import say
from utils.runtime.precision import choose_precision
from utils.stores.episode import read_result
from utils.stores.token_store import TokenStore

ROOT = Path(__file__).resolve().parents[2]
OURS, LIBRARY, TOKENIZING = "ours", "sentence-transformers", "tokenizing"
NOT_SETTINGS = ("out_dir", "collection_dir", "data_dir", "checkpoint", "no_cuda")


@dataclass
class Arguments(DeviceArguments, LengthArguments):
    out_dir: str = required("where mining-….json goes")
    collection_dir: str = required("the texts, in MS MARCO's files")
    data_dir: str = required("token stores of the same texts, as data/msmarco_data.py writes them")
    checkpoint: str = required("the checkpoint that mines: a folder or a hub name")
    rounds: int = option(3, "runs of each contender that count, after one that does not")
    topk: int = option(200, "passages ranked a query, from which negatives are drawn")
    negatives: int = option(30, "negatives drawn a query")
    clusters: int = option(50, "clusters of the training queries, which only ours makes")
    batch_size: int = option(128, "texts encoded at once")
    seed: int = option(42, "seed of clusters and negatives")

    def __post_init__(self) -> None:
        check_at_least_one(self, "rounds")


def make_command(name: str, args: Arguments, folder: Path) -> tuple[Path, list[object]]:
    """The script of a contender and its flags, with which it writes into `folder`."""
    lengths = ["--max_seq_length", args.max_seq_length, "--max_query_length", args.max_query_length]
    settings = ["--fp16", args.fp16, "--seed", args.seed, "--no_cuda", args.no_cuda]
    if name == OURS:
        return ROOT / "drivers" / "run_ann_data_gen.py", [
            *("--data_dir", args.data_dir, "--output_dir", folder, "--training_dir", folder / "none"),
            *("--model_type", AUTO, "--init_model_dir", args.checkpoint),
            *("--topk_training", args.topk, "--negative_sample", args.negatives),
            *("--cluster_query", "--cluster_centroids", args.clusters),
            *("--per_gpu_eval_batch_size", args.batch_size, *lengths, *settings),
        ]
    if name == LIBRARY:
        return Path(__file__).with_name("library_miner.py"), [
            *("--collection_dir", args.collection_dir, "--checkpoint", args.checkpoint, "--out_dir", folder),
            *("--topk", args.topk, "--negatives", args.negatives),
            *("--batch_size", args.batch_size, "--max_length", args.max_seq_length, *settings),
        ]
    return ROOT / "data" / "msmarco_data.py", [
        *("--data_dir", args.collection_dir, "--out_data_dir", folder, *lengths),
        *("--model_type", AUTO, "--model_name_or_path", args.checkpoint),
    ]


def count_triplets(name: str, args: Arguments, folder: Path) -> int:
    """How many triplets a contender has mined into `folder`."""
    if name == LIBRARY:
        return len(load_from_disk(str(folder))) * args.negatives
    return read_result(folder, 0)["triplets"] if name == OURS else 0


def take_turns(args: Arguments) -> dict[str, tuple[list[Stage], int]]:
    """Each contender's runs that count, and the triplets of one: every run has the same."""
    taken: dict[str, list[Stage]] = {OURS: [], LIBRARY: [], TOKENIZING: []}
    triplets = {}
    for number in range(args.rounds + 1):
        for name, stages in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                stage = processes.whole(processes.watch_python(*make_command(name, args, Path(folder))))
                triplets[name] = count_triplets(name, args, Path(folder))
            say(f"round {number} of {args.rounds}: {name} took {stage.seconds:.1f} s")
            stages.append(stage)
    return {name: (stages[1:], triplets[name]) for name, stages in taken.items()}


def summarize(taken: dict[str, tuple[list[Stage], int]]) -> dict[str, dict]:
    """Of each contender medians over its runs, its triplets, and its time to that of the others."""
    seconds = {name: [stage.seconds for stage in stages] for name, (stages, _) in taken.items()}
    return {
        name: {
            "median_seconds": statistics.median(seconds[name]),
            "time_to": {
                other: {
                    "ratio_of_medians": statistics.median(seconds[name]) / statistics.median(of_other),
                    "median_ratio": statistics.median(a / b for a, b in zip(seconds[name], of_other, strict=True)),
                }
                for other, of_other in seconds.items()
            },
            "triplets": triplets,
            "own_gib": max(stage.own_gib for stage in stages),
            "resident_gib": max(stage.resident_gib for stage in stages),
            "seconds": seconds[name],
        }
        for name, (stages, triplets) in taken.items()
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda)
    stores = [TokenStore(Path(args.data_dir, name)) for name in ("passages", "train-query", "dev-query")]
    dtype = str(choose_precision(args.fp16, device).dtype).removeprefix("torch.")
    result = {
        **contenders.describe(args, ("torch", "transformers", LIBRARY), NOT_SETTINGS, device),
        "dtype": dtype,
        "collection": {store.folder.name: {"texts": len(store), "tokens": store.meta.tokens} for store in stores},
        "contenders": summarize(take_turns(args)),
    }
    contenders.write_result(Path(args.out_dir, f"mining-{dtype}.json"), result)


if __name__ == "__main__":
    run(main)
