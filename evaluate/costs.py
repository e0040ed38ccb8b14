"""What a full MS MARCO run costs in time, disk and memory, computed from rates rather than measured.

    python evaluate/costs.py
    python evaluate/costs.py --gpu h100 --train_share 0.25
    python evaluate/costs.py --gpu "NVIDIA V100" --peak_tflops 125
    python evaluate/costs.py --measured runs/benchmarks/training-minilm-cls-float32.json
    python evaluate/costs.py --measured_gpu runs/gpu_check/gpu_check.json

Prints two Markdown tables: the rates, each with its source, and what follows from them for the published
hyperparameters (model/hyperparameters.py). A time is the operations that a stage cannot do without
(evaluate/operations.py) over the rate: a peak from a data sheet times the share of it that is reached. Those shares
are the soft part, and arguments. With --measured, a result of evaluate/benchmarks/training.py, one more column has
the rates of the machine that was measured there. A GPU searches in float16, in which its peak is that of bfloat16. A
CPU searches in float32: of one, give a result in float32.

With --measured_gpu, peak and shares are those of a GPU that was measured, from a JSON with these keys (and any more):

    {"device": "NVIDIA H100 80GB HBM3", "peak_operations_a_second": 6.6e14,
     "encoding": {"useful_share": 0.5}, "search": {"useful_share": 0.4},
     "training": {"erm": {"useful_share": 0.4}, "idro": {"useful_share": 0.35}}}

The peak is of products of matrices in bfloat16, in operations a second. A share is the operations that the stage
cannot do without, over its time and that peak. Of training, iDRO's counts here.

What several GPUs send each other in a step takes its bytes over the speed of the link between them. The all-reduce of
DistributedDataParallel runs beside the backward pass, and counts as far as it is longer. The exchange of the
clusters' gradients, of the layers that iDRO compares, runs after the backward pass, and counts in full.

Not counted: reading and writing files, clustering, dealing negatives, and launches.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evaluate.operations import encoding_operations, useful_operations
from evaluate.reporting.tables import markdown
from model.group_gradients import GPU_BLOCK_BYTES
from model.hyperparameters import IDRO_LAYERS, MINED_PASSES, PUBLISHED
from utils.mining.search import BLOCK_BYTES, LINES, RESCORED, SPARE, TILE_SCORES, WINDOW_CANDIDATES
from utils.runtime.arguments import option, parse
from utils.runtime.errors import InputError, run
from utils.stores.files import read_json

VOCABULARY, POSITIONS, SEGMENTS = 30_522, 512, 2
TOPK, NEGATIVES, CLUSTERS, EPISODES, SAVE_STEPS = (
    PUBLISHED["base"][name] for name in ("TOPK", "NEGATIVES", "CLUSTERS", "EPISODES", "SAVE_STEPS")
)


class DataSheet(NamedTuple):
    """Of NVIDIA's: name, peak in 10^12 operations a second, and the link to other GPUs, in 10^9 bytes a second.

    The peak is of bfloat16 and float16 on matrix units, dense. Of a link, the data sheets give both directions
    together; here it is one.
    """

    name: str
    tflops: float
    link: str
    link_gbytes: float


PCIE = "PCIe 4.0 x16", 32.0
DATA_SHEETS = {
    "a100": DataSheet("NVIDIA A100", 312.0, "NVLink", 300.0),
    "h100": DataSheet("NVIDIA H100 SXM", 989.0, "NVLink", 450.0),
    "h200": DataSheet("NVIDIA H200 SXM", 989.0, "NVLink", 450.0),
    "l4": DataSheet("NVIDIA L4", 121.0, *PCIE),
    "l40s": DataSheet("NVIDIA L40S", 362.0, *PCIE),
}
SHARES = "encode_share", "train_share", "search_share", "link_share"
ASSUMED = "assumed, not measured"
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
    link_gbytes: float = option(
        0, "what a GPU sends to others, in 10^9 bytes a second; 0: by its data sheet, of an unknown one 32 (PCIe 4.0)"
    )
    link_share: float = option(0.7, "share of the link's speed that collectives reach")
    gpus: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "numbers of GPUs, a column each"})
    measured: str = option("", "training-….json of evaluate/benchmarks/training.py")
    measured_gpu: str = option("", "JSON with the peak and the shares of a GPU, which then count")

    def __post_init__(self) -> None:
        self.sources = dict.fromkeys(SHARES, ASSUMED)
        if self.measured_gpu:
            measured = read_measured_gpu(self.measured_gpu)
            for name, value in measured.items():
                setattr(self, name, value)
            source = f"measured, {Path(self.measured_gpu).name}"
            self.sources |= dict.fromkeys(measured, source) | {"peak_tflops": f"{source}: {self.gpu}"}
        sheet = next(
            (DATA_SHEETS[word] for word in re.findall(r"\w+", self.gpu.lower()) if word in DATA_SHEETS), None
        )
        if self.peak_tflops == 0:
            if not sheet:
                raise InputError(
                    f"--gpu {self.gpu!r} is none of {', '.join(DATA_SHEETS)}, whose data sheets are known; give its "
                    "--peak_tflops"
                )
            self.gpu, self.peak_tflops, *_ = sheet
        self.sources.setdefault("peak_tflops", f"data sheet, {self.gpu}")
        self.sources["link_gbytes"] = "given"
        if self.link_gbytes == 0:
            link, self.link_gbytes = (sheet.link, sheet.link_gbytes) if sheet else PCIE
            self.sources["link_gbytes"] = f"data sheet, {link}" if sheet else f"{ASSUMED}: {link}"
        for name in ("peak_tflops", "link_gbytes", *SHARES):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} is {getattr(self, name)}; a number above 0 is needed")
        if min(self.gpus, default=0) < 1:
            raise InputError(f"--gpus {' '.join(map(str, self.gpus))}: at least 1 is needed in each column")


@dataclass(frozen=True)
class Size:
    """An encoder and how it is trained: `batch` triplets a process and step, `steps` an episode.

    iDRO compares gradients over the last `watched` layers.
    """

    layers: int
    width: int
    batch: int
    steps: int
    watched: int

    @property
    def parameters(self) -> int:
        """Those of BERT without its pooler: embeddings and their norm, and the layers."""
        return (VOCABULARY + POSITIONS + SEGMENTS + 2) * self.width + self.layers * self.layer_parameters

    @property
    def layer_parameters(self) -> int:
        """A layer's matrices, biases and norms."""
        return 12 * self.width**2 + 13 * self.width

    @property
    def lines(self) -> int:
        """The lines of the mined file, whole ones, that a process's batch is of."""
        return -(-self.batch // (NEGATIVES // MINED_PASSES))

    @property
    def clusters(self) -> float:
        """The clusters that a process's batch has in the mean, where queries fall into them evenly."""
        return CLUSTERS * (1 - (1 - 1 / CLUSTERS) ** self.lines)


SIZES = {
    name: Size(layers, width, PUBLISHED[name]["BATCH_SIZE"], PUBLISHED[name]["STEPS"], IDRO_LAYERS[name])
    for name, layers, width in (("base", 12, 768), ("large", 24, 1_024))
}


@dataclass(frozen=True)
class Rates:
    """Useful operations a second that a device reaches in each stage, and bytes a second to another device."""

    encode: float
    search: float
    train: float
    send: float


def batch_lengths(size: Size, passage_tokens: int, query_tokens: int) -> np.ndarray:
    """The tokens of the distinct texts of a process's batch: whole mined lines, and each text once, int64."""
    return np.repeat([query_tokens, passage_tokens], [size.lines, size.lines + size.batch])


def sent_bytes(size: Size, devices: int) -> tuple[float, float]:
    """Bytes that a GPU sends in a step of iDRO: DistributedDataParallel's gradients, and the clusters'.

    In a sum over N GPUs each adds up a share and hands it on, so that each sends 2 (N - 1) / N of the numbers. Of the
    watched layers each sends the gradients of every cluster in its batch, and hands on the mean. Numbers are float32,
    and queries fall into clusters evenly.
    """
    watched = size.watched * size.layer_parameters
    others = 4 * (devices - 1) / devices
    return 2 * others * (size.parameters - watched), (size.clusters + 1) * others * watched


def seconds(args: Arguments, size: Size, rates: Rates, devices: int) -> dict[str, float]:
    """Seconds of each stage. A step on many devices is over as many triplets more."""
    texts = ((args.passages, args.passage_tokens), (args.train_queries + args.dev_queries, args.query_tokens))
    operations = sum(
        count * encoding_operations(np.array([tokens]), size.layers, size.width) for count, tokens in texts
    )
    encode = operations / rates.encode / devices
    search = (args.train_queries + args.dev_queries) * 2 * size.width * args.passages / rates.search / devices
    lengths = batch_lengths(size, args.passage_tokens, args.query_tokens)
    products = useful_operations(lengths, size.layers, size.width) / rates.train
    all_reduce, exchange = (sent / rates.send for sent in sent_bytes(size, devices))
    step = products + max(0, all_reduce - 2 / 3 * products) + exchange  # two thirds are the backward pass
    episode = size.steps * step
    # The checkpoints before the last are evaluated with the miner's embeddings.
    whole = EPISODES * (encode + search + episode) + encode
    return {
        "encode passages and queries": encode,
        "search": search,
        "mine an episode: both": encode + search,
        "beside a backward pass: the all-reduce of gradients": all_reduce,
        "after it: the exchange of the clusters' gradients": exchange,
        "a training step": step,
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
    """Bytes that one process holds, where they are most."""
    window = min(WINDOW_CANDIDATES // TOPK, args.train_queries) * (4 * size.width + CANDIDATE_BYTES * TOPK)
    tokens = batch_lengths(size, args.passage_tokens, args.query_tokens).sum()
    return {
        "a process that searches: a window of queries, best candidates": window,
        "the GPU of a process that searches, rescoring included": float(search_bytes(size)),
        "a process that trains: parameters, gradients, moments": 16 * size.parameters,
        "a process that trains: activations (estimate)": float(ACTIVATION_BYTES * size.width * size.layers * tokens),
        # Of a block, all but one hold what other processes send or are sent.
        "a GPU that trains: blocks of the clusters' gradients": 4
        * min(GPU_BLOCK_BYTES, 4 * size.clusters * size.watched * size.layer_parameters),
    }


def search_bytes(size: Size) -> int:
    """Bytes on a GPU that searches (utils.mining.search.HalfBlock), where they are most.

    A block of passages lies there in float32 and float16. While it is made, there are three more in float32: a copy
    with the mean taken off, and two steps on the way to what rounding costs. Then a tile of scores, float16, is there
    twice where it is padded. Then the vectors of pairs are gathered, and multiplied, in float32. Beside these lie the
    queries, and at last their candidates with score, error and column. (More where so many passages score alike that
    queries get more candidates.)
    """
    block = BLOCK_BYTES // (4 * size.width) * 4 * size.width
    queries, candidates = LINES * 4 * size.width, LINES * (TOPK + SPARE) * (4 + 4 + 8)
    made, tiles, pairs = 3 * block, 2 * 2 * TILE_SCORES, 3 * 4 * size.width * RESCORED
    return block * 3 // 2 + max(made, queries + tiles, queries + candidates + pairs)


def read_measured_gpu(path: str) -> dict[str, str | float]:
    """The arguments that a file in the form of this script's docstring stands for."""
    result = read_json(path)
    try:
        found = {
            "gpu": result["device"],
            "peak_tflops": result["peak_operations_a_second"] / 1e12,
            "encode_share": result["encoding"]["useful_share"],
            "train_share": result["training"]["idro"]["useful_share"],
            "search_share": result["search"]["useful_share"],
        }
        return {name: str(value) if name == "gpu" else float(value) for name, value in found.items()}
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "is no result of a GPU check: it lacks device, peak_operations_a_second, or the useful_share of "
            "encoding, training's idro or search",
            path,
        ) from None


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
    shares = args.encode_share, args.search_share, args.train_share
    gpu = Rates(*(operations * share for share in shares), 1e9 * args.link_gbytes * args.link_share)
    told = args.sources
    sources = [
        ["peak in bfloat16 and float16", f"{args.peak_tflops:.4g} TFLOP/s", told["peak_tflops"]],
        ["share of the peak in encoding (bfloat16)", f"{args.encode_share:.0%}", told["encode_share"]],
        ["share of the peak in training (bfloat16)", f"{args.train_share:.0%}", told["train_share"]],
        ["share of the peak in searching (float16)", f"{args.search_share:.0%}", told["search_share"]],
        ["link between GPUs, in one direction", f"{args.link_gbytes:g} GB/s", told["link_gbytes"]],
        ["share of it that collectives reach", f"{args.link_share:.0%}", told["link_share"]],
        ["tokens of a passage", f"{args.passage_tokens}", "mean of MS MARCO's, cut at 256"],
        ["tokens of a query", f"{args.query_tokens}", ASSUMED],
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
            [f"share of the peak in encoding, {name}", f"{share:.0%}", f"{ASSUMED}: as in training"],
            [f"share of the peak in searching, {name}", f"{args.search_share:.0%}", told["search_share"]],
        ]
        columns[f"base, {name}"] = SIZES["base"], Rates(peak * share, peak * args.search_share, peak * share, 1.0), 1
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
