"""How far iDRO's sketches (--idro_sketch_dim D) are from its exact cosines and weights.

    python evaluate/benchmarks/sketch_error.py --out_dir runs/benchmarks

One batch's exact products are compared with those of sketches of D numbers, over several seeds of the projection:
the root mean square and the largest error of a cosine between two clusters, and the largest relative error of a
cluster's weight after the step (from uniform weights, rho 0.05, and the training losses as they are). The texts and
weights are random, dropout is off; see group_gradients.py for their shapes.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from evaluate.benchmarks.contenders import make_encoder
from evaluate.benchmarks.group_gradients import Arguments as Shape
from evaluate.benchmarks.group_gradients import make_batch
from model.dro import IDRO
from model.group_gradients import GroupGradients
from model.retriever import Retriever
from model.watched_layers import watched_layers
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import run
from utils.runtime.logs import progress
from utils.stores.files import write_json


@dataclass
class Arguments:
    out_dir: str = required("where sketch_error.json goes")
    shape: str = option("minilm", "as in group_gradients.py")
    triplets: int = option(32, "triplets, each of a cluster of its own while there are enough")
    clusters: int = option(50, "clusters")
    dims: list[int] = field(
        default_factory=lambda: [64, 256, 1024, 4096, 16384], metadata={"help": "the D to be measured"}
    )
    seeds: int = option(5, "projections of each D")


def step_products(args: Arguments, shape: Shape, dim: int | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The clusters' products (K, K), losses (K,) and counts (K,) of the one batch, exact (`dim` None) or sketched."""
    encoder = make_encoder(args.shape).eval()
    watch = GroupGradients(watched_layers(encoder, "base"), args.clusters, sketch_dim=dim, seed=seed)
    batch = make_batch(shape, 0)
    losses = Retriever(encoder, watch)(batch)
    losses.sum().backward()
    counts = batch.clusters.bincount(minlength=args.clusters)
    sums = torch.zeros(args.clusters).index_add_(0, batch.clusters, losses.detach())
    return watch.collect(), sums / counts.clamp(min=1), counts


def weights_after(products: Tensor, losses: Tensor, counts: Tensor) -> Tensor:
    objective = IDRO(len(counts), alpha=0.25, ema=0.1, rho=0.05, eps=0.01)
    objective.update(losses, counts, products)
    return objective.weights


def measure(args: Arguments) -> list[dict]:
    shape = Shape(
        out_dir=args.out_dir, shape=args.shape, triplets=args.triplets, clusters=args.clusters, all_clusters=True
    )
    exact, losses, counts = step_products(args, shape, None, 0)
    here = counts > 0

    def cosines(products: Tensor) -> Tensor:
        norms = products.diagonal().clamp(min=0).sqrt()
        between = (products / (norms[:, None] * norms))[here][:, here]
        return between[*torch.triu_indices(*between.shape, offset=1)]

    weights = weights_after(exact, losses, counts)
    rows = []
    for dim in progress(args.dims, unit="D", label="sketches"):
        sketched = [step_products(args, shape, dim, seed)[0] for seed in range(args.seeds)]
        errors = torch.stack([cosines(products) - cosines(exact) for products in sketched])
        relative = [weights_after(products, losses, counts) / weights - 1 for products in sketched]
        rows.append(
            {
                "dim": dim,
                "cosine_rms_error": float(errors.square().mean().sqrt()),
                "cosine_largest_error": float(errors.abs().max()),
                "weight_largest_relative_error": float(torch.stack(relative).abs().max()),
            }
        )
    return rows


def main() -> None:
    args = parse(Arguments, __doc__)
    rows = measure(args)
    write_json(Path(args.out_dir, "sketch_error.json"), {"settings": vars(args), "rows": rows})
    print("     D  cosine rms  cosine largest  weight largest (relative)")
    for row in rows:
        print(
            f"{row['dim']:6d}  {row['cosine_rms_error']:10.4f}  {row['cosine_largest_error']:14.4f}"
            f"  {row['weight_largest_relative_error']:10.5f}"
        )


if __name__ == "__main__":
    run(main)
