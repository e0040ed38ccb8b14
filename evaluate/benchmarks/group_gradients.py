"""What iDRO costs: a training step of ours against ERM's, and against one backward pass a cluster as published.

    python evaluate/benchmarks/group_gradients.py --out_dir runs/benchmarks --shape base
    python -m torch.distributed.run --standalone --nproc_per_node 2 evaluate/benchmarks/group_gradients.py …

The contenders take steps in turn, on the same batches. Reported are each one's median step in seconds, the median of
its ratios to ERM's step on the same batch, and, of a single process, the peak memory of a process that runs only that
contender. Batches have the shape of a mined file's: lines of one query, one positive and 6 negatives; lengths are
drawn like those of MS MARCO's texts (passages 77 tokens in the mean, at most 256; queries 10, at most 32), and each
query has one of 50 clusters. Weights are random: they do not matter for time.
"""

import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

from model.dro import make_objective, watched_layers
from model.encoders import BertDot
from model.group_gradients import GroupGradients
from model.optimizers import make_optimizer
from model.training_step import TrainingStep
from model.triplets import TripletModel
from utils import distributed
from utils.arguments import option, parse, required
from utils.batching import PackedTokens, TripletBatch
from utils.errors import InputError, run
from utils.files import write_json
from utils.logs import progress
from utils.precision import choose_precision

SHAPES = {  # layers, width, heads
    "base": (12, 768, 12),
    "mid": (12, 384, 12),
    "small": (6, 384, 12),
    "tiny": (2, 32, 2),
}
NEGATIVES_A_LINE = 6
VOCABULARY = 30_522


@dataclass
class Arguments:
    out_dir: str = required("where group_gradients-….json goes")
    shape: str = option("small", "base (12 layers, 768 wide), mid (12, 384), small (6, 384) or tiny")
    triplets: int = option(64, "triplets a step and process")
    clusters: int = option(50, "clusters")
    all_clusters: bool = option(
        False, "give every line a cluster of its own and every triplet a line: the worst case"
    )
    steps: int = option(7, "steps of each contender that count, after one that does not")
    contenders: list[str] = field(
        default_factory=lambda: ["erm", "idro", "sketch", "published"],
        metadata={
            "help": "erm, idro, sketch (iDRO with --idro_sketch_dim 1024), published (a backward pass a cluster)"
        },
    )
    fp16: bool = option(False, "mixed precision")
    peak_of: str = option("", "only print the peak memory, in GiB, of two steps of this contender")
    no_cuda: bool = option(False, "stay on the CPU")

    def __post_init__(self) -> None:
        if "erm" not in self.contenders:
            raise InputError("--contenders must hold erm, which the others are compared to")
        self.contenders.sort(key=lambda name: name != "erm")
        if self.shape not in SHAPES:
            raise InputError(f"--shape {self.shape!r}: there are {', '.join(SHAPES)}")


def make_encoder(shape: str) -> BertDot:
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    return BertDot(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
        )
    )


def make_batch(args: Arguments, seed: int) -> TripletBatch:
    """A batch as mined lines give it, with random tokens."""
    generator = np.random.default_rng([seed, distributed.rank()])
    per_line = 1 if args.all_clusters else NEGATIVES_A_LINE
    line = np.arange(args.triplets) // per_line
    lines = line[-1] + 1
    clusters = np.sort(
        np.arange(lines) % args.clusters if args.all_clusters else generator.integers(0, args.clusters, lines)
    )

    def lengths(count: int, mean: float, most: int) -> np.ndarray:
        return np.clip(generator.gamma(4, mean / 4, size=count), 4, most).astype(np.int64)

    of_texts = np.concatenate([lengths(lines, 10, 32), lengths(lines + args.triplets, 77, 256)])
    text_clusters = np.concatenate([clusters, clusters, clusters[line]])
    order = np.lexsort((of_texts, text_clusters))
    taken = of_texts[order]
    first = np.cumsum(taken) - taken
    tokens = PackedTokens(
        input_ids=torch.from_numpy(generator.integers(1000, VOCABULARY, size=taken.sum())),
        positions=torch.from_numpy(np.arange(taken.sum()) - np.repeat(first, taken)),
        first=torch.from_numpy(first),
        lengths=taken.tolist(),
    )
    place = torch.from_numpy(np.argsort(order))
    return TripletBatch(
        tokens=tokens,
        query=place[line],
        positive=place[lines + line][:, None],
        negative=place[2 * lines :][:, None],
        clusters=torch.from_numpy(clusters[line]),
        weights=torch.ones(args.triplets),
        sequence_clusters=torch.from_numpy(text_clusters[order]),
    )


class PublishedStep(TrainingStep):
    """iDRO as published: a backward pass for every cluster in the batch, gradients summed over processes in full."""

    def __init__(self, *parts, watched: nn.ModuleList) -> None:
        super().__init__(*parts)
        self.watched = list(watched.parameters())

    def _accumulate(self, batch: TripletBatch, counts: Tensor, last: bool) -> Tensor:
        with self.precision.autocast():
            losses = self.model(batch)
        sums = [p.new_zeros(len(counts), p.numel()) for p in self.watched]
        for cluster in batch.clusters.unique().tolist():
            mean = losses[batch.clusters == cluster].sum() / counts[cluster]
            for total, gradient in zip(sums, torch.autograd.grad(mean, self.watched, retain_graph=True), strict=True):
                total[cluster] = gradient.flatten()
        self.products = sum(total @ total.T for total in map(distributed.all_reduce_sum, sums))
        del sums
        (self.objective.coefficients(batch.clusters, counts) * losses).sum().backward()
        return losses


def make_contender(name: str, args: Arguments, device: torch.device) -> TrainingStep:
    encoder = make_encoder(args.shape).to(device).train()
    settings = {"alpha": 0.25, "ema": 0.1, "rho": 0.05, "eps": 0.01}
    objective = make_objective("erm" if name in ("erm", "published") else "idro", args.clusters, **settings).to(
        device
    )
    layers = watched_layers(encoder, "base")
    watch = None
    if name in ("idro", "sketch"):
        watch = GroupGradients(layers, args.clusters, sketch_dim=1024 if name == "sketch" else None)
    model = TripletModel(encoder, watch)
    optimizer = make_optimizer("lamb", model, 1e-5, 0.0, 1e-8)
    if distributed.world_size() > 1:
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and args.fp16)
    parts = (model, objective, optimizer, scaler, choose_precision(args.fp16, device), 1.0)
    return PublishedStep(*parts, watched=layers) if name == "published" else TrainingStep(*parts, watch)


def timed(step: TrainingStep, batch: TripletBatch, device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    batch = batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    distributed.barrier()
    start = time.perf_counter()
    step([batch], 1e-5)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(args: Arguments, name: str) -> float:
    """Peak memory in GiB of a fresh process that takes two steps of one contender."""
    flags = ("shape", "triplets", "clusters", "all_clusters", "fp16", "no_cuda")
    command = [sys.executable, __file__, "--out_dir", args.out_dir, "--peak_of", name]
    command += [part for flag in flags for part in (f"--{flag}", str(getattr(args, flag)))]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise InputError(f"the memory of {name} could not be measured: {finished.stderr[-500:]}")
    return float(finished.stdout.split()[-1])


def print_peak(args: Arguments, device: torch.device) -> None:
    step = make_contender(args.peak_of, args, device)
    for number in range(2):
        timed(step, make_batch(args, number), device)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:  # getrusage would carry over the peak of the process that started this one
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak[1]) / 2**20)


def measure(args: Arguments, device: torch.device) -> dict:
    """Steps of all contenders in turn; each step's ratio is to the ERM step (or the first contender's) before it."""
    steps = {name: make_contender(name, args, device) for name in args.contenders}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in progress(
        range(args.steps + 1), unit="rounds", label=f"{args.shape} {steps['erm'].precision.dtype}"
    ):
        batch = make_batch(args, number)
        for name, step in steps.items():
            taken = timed(step, batch, device)
            if number:
                seconds[name].append(taken)
    first = seconds[args.contenders[0]]
    batch = make_batch(args, 1)
    return {
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "dtype": str(steps[args.contenders[0]].precision.dtype).removeprefix("torch."),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "shape": args.shape,
        "triplets": args.triplets,
        "tokens": len(batch.tokens.input_ids),
        "clusters_in_a_batch": batch.clusters.unique().numel(),
        "contenders": {
            name: {
                "median_seconds": statistics.median(taken),
                "ratio": statistics.median(t / f for t, f in zip(taken, first, strict=True)),
            }
            for name, taken in seconds.items()
        },
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda)
    if args.peak_of:
        print_peak(args, device)
        return
    result = measure(args, device)
    if distributed.world_size() == 1:
        for name, of_contender in result["contenders"].items():
            of_contender["peak_gib"] = peak_memory(args, name)
    if distributed.is_main():
        case = [args.shape, result["dtype"], f"{result['processes']}p"] + ["all-clusters"] * args.all_clusters
        write_json(Path(args.out_dir, f"group_gradients-{'-'.join(case)}.json"), result)
        print(f"{' '.join(case)}, {result['tokens']} tokens, {result['clusters_in_a_batch']} clusters in a batch")
        for name, of_contender in result["contenders"].items():
            memory = f"  {of_contender['peak_gib']:.2f} GiB" if "peak_gib" in of_contender else ""
            print(f"  {name:10s} {of_contender['median_seconds']:8.3f} s  x {of_contender['ratio']:5.2f}{memory}")
    distributed.leave()


if __name__ == "__main__":
    run(main)
