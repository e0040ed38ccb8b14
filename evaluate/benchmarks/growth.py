"""How mining grows with the collection: seconds and memory of the driver's stages at several numbers of passages.

    python evaluate/benchmarks/growth.py --checkpoint CHECKPOINT --out_dir OUT
    python evaluate/benchmarks/growth.py --checkpoint CHECKPOINT --out_dir OUT --passages 10000 100000 1000000

Time should be linear in the passages, and memory should not grow but by the few bytes a passage that offsets, hashes
and the like take. Collections are made on the spot: random tokens, with lengths drawn like those of MS MARCO's texts
(passages 77 tokens in the mean, at most 256; queries 10, at most 32). The encoder is small and random, so that a
million passages take minutes, and the number of queries is the same for every collection. Of the checkpoint only the
tokenizer is used. The collections take turns, and drivers/run_ann_data_gen.py mines each as a process of its own:

    start     loads libraries
    queries   encodes training and dev queries
    passages  encodes the passages
    search    ranks passages for all queries, and draws negatives
    files     evaluates the dev queries, clusters the training queries and writes the mined file
"""

import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.judgments import qrel_file
from data.tokenizing import load_tokenizer
from evaluate.benchmarks import contenders, processes
from evaluate.benchmarks.processes import Stage
from utils.runtime import distributed
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.stores.files import write_json
from utils.stores.qrels import Qrels, write_qrels
from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store

ROOT = Path(__file__).resolve().parents[2]
MAX_SEQ_LENGTH, MAX_QUERY_LENGTH = 256, 32
BLOCK_ROWS = 10_000
STAGE_ENDS = {  # what the driver says at the end of each stage but the last
    "start": r"mining with",
    "queries": r"dev-query: .* encoded",
    "passages": r"passages: .* encoded",
    "search": r"queries searched",
}
STAGES = (*STAGE_ENDS, "files")


@dataclass
class Arguments:
    out_dir: str = required("where growth.json goes")
    checkpoint: str = required("a checkpoint (folder or hub name) with a BERT tokenizer")
    passages: list[int] = field(
        default_factory=lambda: [10_000, 100_000], metadata={"help": "passages of each collection"}
    )
    queries: int = option(2_000, "training queries of every collection; it has a tenth as many dev queries")
    rounds: int = option(3, "runs of each collection that count")
    shape: str = option("tiny", "tiny (2 layers, 32 wide), minilm (6, 384), mid (12, 384) or base (12, 768)")
    clusters: int = option(50, "clusters of the training queries")
    batch_size: int = option(128, "texts encoded at once")
    seed: int = option(42, "seed of the collections")
    no_cuda: bool = option(False, "stay on the CPU")

    def __post_init__(self) -> None:
        contenders.check_shape(self.shape)
        if min(self.rounds, self.queries // 10, *self.passages) < 1:
            raise InputError("--rounds and every one of --passages must be at least 1, --queries at least 10")


def save_checkpoint(args: Arguments, folder: Path) -> PreTrainedTokenizerBase:
    """Saves a random encoder of the shape with the checkpoint's tokenizer, which is returned as it was saved."""
    tokenizer = load_tokenizer(args.checkpoint, contenders.READING.pooling)
    tokenizer.save_pretrained(folder)
    contenders.make_encoder(args.shape, len(tokenizer)).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def write_collection(args: Arguments, folder: Path, passages: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Token stores of random rows and judgments: one relevant passage a query."""
    generator, queries = np.random.default_rng(args.seed), args.queries
    folder.mkdir()
    source = folder / "random.txt"
    source.write_text(f"random tokens, seed {args.seed}\n")
    for name, rows, mean, longest in (
        ("passages", passages, 77, MAX_SEQ_LENGTH),
        ("train-query", queries, 10, MAX_QUERY_LENGTH),
        ("dev-query", queries // 10, 10, MAX_QUERY_LENGTH),
    ):
        read = contenders.READING.queries  # by which it mines
        with create_token_store(folder / name, TokenizerInfo.of(tokenizer), longest, source, read) as writer:
            for start in range(0, rows, BLOCK_ROWS):
                ids = [str(row) for row in range(start, min(start + BLOCK_ROWS, rows))]
                lengths = contenders.draw_lengths(generator, len(ids), mean, longest)
                tokens = generator.integers(len(tokenizer), size=lengths.sum())
                writer.append(ids, np.split(tokens, np.cumsum(lengths)[:-1]))
    for name, count in (("train", queries), ("dev", queries // 10)):
        relevant = Qrels.by_row(np.arange(count), generator.integers(passages, size=count), np.ones(count))
        write_qrels(qrel_file(folder, name), relevant)


def mine(args: Arguments, checkpoint: Path, collection: Path) -> dict[str, Stage]:
    """Mines a collection in a process of its own: what each stage took."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data_dir", collection, "--output_dir", folder, "--training_dir", Path(folder, "none")]
        flags += ["--model_type", "rdot_nll_condenser", "--init_model_dir", checkpoint]
        flags += ["--max_seq_length", MAX_SEQ_LENGTH, "--max_query_length", MAX_QUERY_LENGTH]
        flags += ["--per_gpu_eval_batch_size", args.batch_size, "--no_cuda", args.no_cuda]
        flags += ["--cluster_query", "--cluster_centroids", args.clusters]
        script = ROOT / "drivers" / "run_ann_data_gen.py"
        stages = processes.watch_python(script, flags, list(STAGE_ENDS.values()))
    return dict(zip(STAGES, stages, strict=True))


def summarize(passages: int, tokens: int, runs: list[dict[str, Stage]]) -> dict:
    """Of a collection: medians of the seconds over the runs and the most memory of any of them, a stage each."""
    seconds = {name: statistics.median(run[name].seconds for run in runs) for name in STAGES}
    return {
        "passages": passages,
        "tokens": tokens,
        "encoded_a_second": passages / seconds["passages"],
        "searched_a_second": passages / seconds["search"],
        "stages": {
            name: {
                "median_seconds": seconds[name],
                "own_gib": max(run[name].own_gib for run in runs),
                "resident_gib": max(run[name].resident_gib for run in runs),
                "seconds": [run[name].seconds for run in runs],
            }
            for name in STAGES
        },
    }


def measure(args: Arguments, folder: Path) -> list[dict]:
    """A summary of each collection, by their numbers of passages."""
    checkpoint = folder / "checkpoint"
    tokenizer = save_checkpoint(args, checkpoint)
    collections = {count: folder / str(count) for count in sorted(set(args.passages))}
    for count, collection in collections.items():
        write_collection(args, collection, count, tokenizer)
        say(f"{count:,} passages: made")
    runs: dict[int, list[dict[str, Stage]]] = {count: [] for count in collections}
    for number in range(1, args.rounds + 1):
        for count, collection in collections.items():
            runs[count].append(mine(args, checkpoint, collection))
            seconds = processes.whole(list(runs[count][-1].values())).seconds
            say(f"round {number} of {args.rounds}: {count:,} passages took {seconds:.1f} s")
    return [
        summarize(count, TokenStore(collections[count] / "passages").meta.tokens, runs[count])
        for count in collections
    ]


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    result = {
        "device": contenders.name_of(device),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "settings": {
            name: value for name, value in asdict(args).items() if name not in ("out_dir", "checkpoint", "no_cuda")
        },
        "rows": rows,
    }
    path = Path(args.out_dir, "growth.json")
    write_json(path, result)
    say(f"wrote {path}")


if __name__ == "__main__":
    run(main)
