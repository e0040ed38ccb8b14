"""What iDRO costs: a training step of ours against ERM's, and against one backward pass a cluster as published.

    python evaluate/benchmarks/group_gradients.py --out_dir runs/benchmarks --shape base
    python -m torch.distributed.run --standalone --nproc_per_node 2 evaluate/benchmarks/group_gradients.py …

The contenders take steps in turn, on the same batches. Reported are each one's median step in seconds, the median of
its ratios to ERM's step on the same batch, and, of a single process, the peak memory of a process that runs only that
contender. Batches have the shape of a mined file's: lines of one query, one positive and 6 negatives; lengths are
drawn like those of MS MARCO's texts (passages 77 tokens in the mean, at most 256; queries 10, at most 32), and each
query has one of 50 clusters. Weights are random: they do not matter for time.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from evaluate.benchmarks import contenders
from model.training_step import TrainingStep
from utils.batching import PackedTokens
from utils.runtime import distributed
from utils.runtime.arguments import DeviceArguments, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress
from utils.samples import Batch
from utils.stores.files import write_json

NEGATIVES_A_LINE = 6


@dataclass
class Arguments(DeviceArguments):
    out_dir: str = required("where group_gradients-….json goes")
    shape: str = option("minilm", "base (12 layers, 768 wide), mid (12, 384), minilm (6, 384) or tiny")
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
    peak_of: str = option("", "only print the peak memory, in GiB, of two steps of this contender")

    def __post_init__(self) -> None:
        if "erm" not in self.contenders:
            raise InputError("--contenders must hold erm, which the others are compared to")
        self.contenders.sort(key=lambda name: name != "erm")
        contenders.check_shape(self.shape)


def make_batch(args: Arguments, seed: int) -> Batch:
    """A batch as mined lines give it, with random tokens."""
    generator = np.random.default_rng([seed, distributed.rank()])
    per_line = 1 if args.all_clusters else NEGATIVES_A_LINE
    line = np.arange(args.triplets) // per_line
    lines = line[-1] + 1
    clusters = np.sort(
        np.arange(lines) % args.clusters if args.all_clusters else generator.integers(0, args.clusters, lines)
    )
    of_texts = np.concatenate(
        [
            contenders.draw_lengths(generator, lines, 10, 32),
            contenders.draw_lengths(generator, lines + args.triplets, 77, 256),
        ]
    )
    text_clusters = np.concatenate([clusters, clusters, clusters[line]])
    order = np.lexsort((of_texts, text_clusters))
    taken = of_texts[order]
    first = np.cumsum(taken) - taken
    tokens = PackedTokens(
        input_ids=torch.from_numpy(generator.integers(1000, contenders.VOCABULARY, size=taken.sum())),
        positions=torch.from_numpy(np.arange(taken.sum()) - np.repeat(first, taken)),
        first=torch.from_numpy(first),
        lengths=taken.tolist(),
    )
    place = torch.from_numpy(np.argsort(order))
    return Batch(
        tokens=tokens,
        query=place[line],
        candidates=torch.stack([place[lines + line], place[2 * lines :]], dim=1)[..., None],
        allowed=torch.ones(args.triplets, 2, dtype=torch.bool),
        clusters=torch.from_numpy(clusters[line]),
        weights=torch.ones(args.triplets),
        sequence_clusters=torch.from_numpy(text_clusters[order]),
    )


def make_contender(name: str, args: Arguments, device: torch.device) -> TrainingStep:
    return contenders.make_step(name, contenders.make_encoder(args.shape), args.clusters, args.fp16, device)


def timed(step: TrainingStep, batch: Batch, device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    batch = batch.to(device)
    contenders.now(device)
    distributed.barrier()
    start = contenders.now(device)
    step([batch], contenders.LEARNING_RATE)
    return contenders.now(device) - start


def print_peak(args: Arguments, device: torch.device) -> None:
    step = make_contender(args.peak_of, args, device)
    for number in range(2):
        timed(step, make_batch(args, number), device)
    print(contenders.peak_gib(device))


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
        "device": contenders.name_of(device),
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
            of_contender["peak_gib"] = contenders.peak_of_fresh_process(__file__, args, name)
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
