"""What a full MS MARCO run costs in time, disk and memory, computed from rates rather than measured.

    python evaluate/costs.py
    python evaluate/costs.py --gpu h100 --train_share 0.25
    python evaluate/costs.py --gpu "NVIDIA V100" --peak_tflops 125
    python evaluate/costs.py --measured runs/benchmarks/training-minilm-cls-float32.json

Prints two Markdown tables: the rates, each with its source, and what follows from them for the published
hyperparameters (model/hyperparameters.py). A time is the operations that a stage cannot do without
(evaluate/operations.py) over the rate: a peak from a data sheet times the share of it that is reached. Those shares
are the soft part, and arguments. With --measured, a result of evaluate/benchmarks/training.py, one more column has
the rates of the machine that was measured there. A GPU searches in float16, in which its peak is that of bfloat16. A
CPU searches in float32: of one, give a result in float32.

Not counted: reading and writing files, clustering and dealing negatives, and the exchange of gradients between GPUs,
which overlaps with the backward pass.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evaluate.operations import encoding_operations, useful_operations
from evaluate.reporting.tables import markdown
from model.hyperparameters import MINED_PASSES, PUBLISHED
from utils.mining.search import BLOCK_BYTES, TILE_SCORES, WINDOW_CANDIDATES
from utils.runtime.arguments import option, parse
from utils.runtime.errors import InputError, run
from utils.stores.files import read_json

VOCABULARY, POSITIONS, SEGMENTS = 30_522, 512, 2
TOPK, NEGATIVES, CLUSTERS, EPISODES, SAVE_STEPS = (
    PUBLISHED["base"][name] for name in ("TOPK", "NEGATIVES", "CLUSTERS", "EPISODES", "SAVE_STEPS")
)
# Names and peaks, in 10^12 operations a second, of NVIDIA's data sheets: bfloat16 and float16 on matrix units, dense.
DATA_SHEETS = {
    "a100": ("NVIDIA A100", 312.0),
    "h100": ("NVIDIA H100 SXM", 989.0),
    "h200": ("NVIDIA H200 SXM", 989.0),
    "l4": ("NVIDIA L4", 121.0),
    "l40s": ("NVIDIA L40S", 362.0),
}
CANDIDATE_BYTES = 4 + 8  # its score and row
ACTIVATION_BYTES = 34  # a token, layer and unit of width, in mixed precision: arXiv:2205.05198, without scores


@dataclass
class Arguments:
    passages: int = option(8_841_823, "passages of the collection")
    passage_tokens: int = option(77, "tokens of a passage in the mean, cut at 256")
    train_queries: int = option(502_939, "training queries")
    dev_queries: int = option(6_980, "dev queries")
    query_tokens: int = option(10, "tokens of a query in the mean")
    gpu: str = option("a100", f"the GPU that is computed for: {', '.join(DATA_SHEETS)}, or another with its peak")
    peak_tflops: float = option(0, "its peak in products of 16-bit numbers, in 10^12 operations a second; 0: known")
    encode_share: float = option(0.4, "share of the peak that encoding reaches")
    train_share: float = option(0.3, "share of the peak that a training step reaches")
    search_share: float = option(0.4, "share of the peak that searching reaches, choosing the best included")
    gpus: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "numbers of GPUs, a column each"})
    measured: str = option("", "training-….json of evaluate/benchmarks/training.py")

    def __post_init__(self) -> None:
        if self.peak_tflops == 0:
            if self.gpu.lower() not in DATA_SHEETS:
                raise InputError(
                    f"--gpu {self.gpu!r} is none of {', '.join(DATA_SHEETS)}, whose data sheets are known; give its "
                    "--peak_tflops"
                )
            self.gpu, self.peak_tflops = DATA_SHEETS[self.gpu.lower()]
        for name in ("peak_tflops", "encode_share", "train_share", "search_share"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} is {getattr(self, name)}; a number above 0 is needed")
        if min(self.gpus, default=0) < 1:
            raise InputError(f"--gpus {' '.join(map(str, self.gpus))}: at least 1 is needed in each column")


@dataclass(frozen=True)
class Size:
    """An encoder and how it is trained: `batch` triplets a process and step, `steps` an episode."""

    layers: int
    width: int
    batch: int
    steps: int

    @property
    def parameters(self) -> int:
        """Those of BERT without its pooler: embeddings and their norm; matrices, biases and norms of the layers."""
        embeddings = (VOCABULARY + POSITIONS + SEGMENTS + 2) * self.width
        return embeddings + self.layers * (12 * self.width**2 + 13 * self.width)


SIZES = {
    name: Size(layers, width, PUBLISHED[name]["BATCH_SIZE"], PUBLISHED[name]["STEPS"])
    for name, layers, width in (("base", 12, 768), ("large", 24, 1_024))
}


@dataclass(frozen=True)
class Rates:
    """Useful operations a second that a device reaches in each stage."""

    encode: float
    search: float
    train: float


def batch_lengths(size: Size, passage_tokens: int, query_tokens: int) -> np.ndarray:
    """The tokens of the distinct texts of a process's batch: whole mined lines, and each text once, int64."""
    lines = -(-size.batch // (NEGATIVES // MINED_PASSES))
    return np.repeat([query_tokens, passage_tokens], [lines, lines + size.batch])


def seconds(args: Arguments, size: Size, rates: Rates, devices: int) -> dict[str, float]:
    """Seconds of each stage. A step takes as long on many devices as on one, over as many triplets more."""
    texts = ((args.passages, args.passage_tokens), (args.train_queries + args.dev_queries, args.query_tokens))
    operations = sum(
        count * encoding_operations(np.array([tokens]), size.layers, size.width) for count, tokens in texts
    )
    encode = operations / rates.encode / devices
    products = 2 * size.width * args.passages / rates.search / devices
    search = (args.train_queries + args.dev_queries) * products
    step = useful_operations(batch_lengths(size, args.passage_tokens, args.query_tokens), size.layers, size.width)
    episode = size.steps * step / rates.train
    # The checkpoints before the last are evaluated with the miner's embeddings.
    whole = EPISODES * (encode + search + episode) + encode
    return {
        "encode passages and queries": encode,
        "search": search,
        "mine an episode: both": encode + search,
        "a training step": step / rates.train,
        "train an episode": episode,
        f"the run: {EPISODES} episodes, and encoding for the evaluation": whole,
    }


def mean_digits(rows: int) -> float:
    """Digits of a row number below `rows` in the mean."""
    return sum(max(0, rows - start) for start in (10**power for power in range(1, 19))) / rows + 1


def mined_bytes(args: Arguments) -> float:
    """The size of a mined file with clusters: MINED_PASSES lines a query, which share out its negatives."""
    queries, passages, clusters = map(mean_digits, (args.train_queries, args.passages, CLUSTERS))
    line = queries + passages + clusters + len("\t\t\t1\t\n")
    return args.train_queries * (MINED_PASSES * line + NEGATIVES * (passages + 1) - MINED_PASSES)


def disk_bytes(args: Arguments, size: Size, processes: int) -> dict[str, float]:
    """Bytes on the disk. Vectors are float32, tokens uint16; optimizers keep two moments of every parameter.

    Several processes leave each other the best that each has found for all queries.
    """
    queries = args.train_queries + args.dev_queries
    tokens = args.passages * args.passage_tokens + queries * args.query_tokens
    ids = args.passages * (mean_digits(args.passages) + 1)
    candidates = CANDIDATE_BYTES * TOPK * args.train_queries
    parts = {
        "token stores": 2 * tokens + 8 * (args.passages + queries) + ids,
        "embeddings of a checkpoint": 4 * size.width * (args.passages + queries),
        "a mined file": mined_bytes(args),
        "a checkpoint": 12 * size.parameters,
        "candidates, while several processes search": candidates * processes if processes > 1 else 0,
    }
    checkpoints = EPISODES * -(-size.steps // SAVE_STEPS)
    counts = dict(zip(parts, (1, EPISODES + 1, EPISODES, checkpoints, 1), strict=True))
    whole = sum(counts[name] * count for name, count in parts.items())
    return parts | {f"the run, with {EPISODES + 1} embeddings and a checkpoint every {SAVE_STEPS:,} steps": whole}


def memory_bytes(args: Arguments, size: Size) -> dict[str, float]:
    """Bytes that one process holds, where they are most. A GPU has a block of passages in float32 and float16.

    Of the copies that are made in passing, the float32 one of a block with its mean taken off is counted.
    """
    block = 2.5 * BLOCK_BYTES + 2 * TILE_SCORES
    window = min(WINDOW_CANDIDATES // TOPK, args.train_queries) * (4 * size.width + CANDIDATE_BYTES * TOPK)
    tokens = batch_lengths(size, args.passage_tokens, args.query_tokens).sum()
    return {
        "a process that searches: a window of queries, best candidates": window,
        "the GPU of a process that searches: a block of passages, a tile of scores": block,
        "a process that trains: parameters, gradients, moments": 16 * size.parameters,
        "a process that trains: activations (estimate)": float(ACTIVATION_BYTES * size.width * size.layers * tokens),
    }


def read_measured(path: str) -> tuple[str, str, float, float]:
    """Of a result of evaluate/benchmarks/training.py: device, dtype, peak, and the share that iDRO's steps reach."""
    result = read_json(path)
    try:
        name, peak = result["device"], result["peak_operations_a_second"]["median"]
        dtype, share = result["dtype"], result["contenders"]["idro"]["useful_share"]
    except (KeyError, TypeError):
        raise InputError("is no result of evaluate/benchmarks/training.py that idro took part in", path) from None
    return name, dtype, peak, share


def in_time(value: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("h", 3_600), ("min", 60), ("s", 1)):
        if value >= 1.5 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value * 1_000:,.0f} ms"


def in_bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB"


def main() -> None:
    args = parse(Arguments, __doc__)
    operations = args.peak_tflops * 1e12
    gpu = Rates(operations * args.encode_share, operations * args.search_share, operations * args.train_share)
    assumed = "assumed, not measured"
    sources = [
        ["peak in bfloat16 and float16", f"{args.peak_tflops:g} TFLOP/s", f"data sheet, {args.gpu}"],
        ["share of the peak in encoding (bfloat16)", f"{args.encode_share:.0%}", assumed],
        ["share of the peak in training (bfloat16)", f"{args.train_share:.0%}", assumed],
        ["share of the peak in searching (float16)", f"{args.search_share:.0%}", assumed],
        ["tokens of a passage", f"{args.passage_tokens}", "mean of MS MARCO's, cut at 256"],
        ["tokens of a query", f"{args.query_tokens}", assumed],
    ]
    columns = {
        f"{name}, {count} GPU{'s' * (count > 1)}": (size, gpu, count)
        for name, size in SIZES.items()
        for count in args.gpus
    }
    if args.measured:
        name, dtype, peak, share = read_measured(args.measured)
        measured = f"measured, {Path(args.measured).name}"
        sources += [
            [f"peak in {dtype}, {name}", f"{peak / 1e12:.2g} TFLOP/s", measured],
            [f"share of the peak in training, {name}", f"{share:.0%}", measured],
            [f"share of the peak in encoding, {name}", f"{share:.0%}", f"{assumed}: as in training"],
            [f"share of the peak in searching, {name}", f"{args.search_share:.0%}", assumed],
        ]
        columns[f"base, {name}"] = SIZES["base"], Rates(peak * share, peak * args.search_share, peak * share), 1
    cells = [
        {name: in_time(value) for name, value in seconds(args, size, rates, count).items()}
        | {f"disk: {name}": in_bytes(value) for name, value in disk_bytes(args, size, count).items()}
        | {f"memory: {name}": in_bytes(value) for name, value in memory_bytes(args, size).items()}
        for size, rates, count in columns.values()
    ]
    print(markdown([["rate", "value", "source"], *sources]))
    print(markdown([["", *columns], *([name, *(column[name] for column in cells)] for name in cells[0])]), end="")


if __name__ == "__main__":
    run(main)
