"""How fast exact search is: ours and faiss's IndexFlatIP, beside the machine's bare products of matrices.

    python evaluate/benchmarks/search.py --out_dir runs/benchmarks
    python evaluate/benchmarks/search.py --out_dir runs/benchmarks --passages 4000000 --dimensions 768

The contenders take turns on the same vectors in one run, and must find the same passages, but for those whose scores
differ by rounding:

    ours        utils/mining/search.py, from the memory-mapped file, as the miner searches
    faiss       the file is read into an IndexFlatIP, which is then searched; on the CPU
    faiss-gpu   the same in a GpuIndexFlatIP; by default it takes no part

Vectors are drawn about cluster centres that have a large part in common, as those of encoders do. They stay in
OUT_DIR for the next run. Speed is that of the products alone, 2 · queries · passages · dimensions operations, over
all the time that a contender takes; the machine's own rate is that of square matrices between the rounds, in the type
that ours multiplies in. Memory is that of a process of its own, and the file that it has mapped is part of it.
"""

import statistics
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from evaluate.benchmarks import contenders
from evaluate.benchmarks.contenders import product_rate
from utils.mining.search import search
from utils.runtime import distributed
from utils.runtime.arguments import check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress, say
from utils.stores.embedding_store import (
    EmbeddingMatrix,
    EmbeddingSource,
    ShardWriter,
    find_embeddings,
    record_embeddings,
)

CONTENDERS = ("ours", "faiss")
FAISS_GPU = "faiss-gpu"
CENTRES = 1_000
BLOCK = 65_536
ROUNDING = {  # of a score's size: by as much may another library's score of one pair differ
    "faiss": 1e-4,
    FAISS_GPU: 1e-3,  # whose products may be in TF32
}


@dataclass
class Arguments:
    out_dir: str = required("where search-….json goes, and the vectors are kept")
    passages: int = option(1_000_000, "passages")
    queries: int = option(10_000, "queries")
    dimensions: int = option(384, "dimensions of a vector")
    k: int = option(200, "passages found a query")
    rounds: int = option(3, "searches of each contender that count, after one that does not")
    product_size: int = option(0, "rows of the square matrices of the machine's rate; 0: 2048, on CUDA 8192")
    most_seconds: float = option(0, "rounds end where another one would last longer; 0: never")
    contenders: list[str] = field(
        default_factory=lambda: list(CONTENDERS), metadata={"help": ", ".join((*CONTENDERS, FAISS_GPU))}
    )
    seed: int = option(42, "seed of the vectors")
    peak_of: str = option("", "only print the peak memory, in GiB, of one search of this contender")
    no_cuda: bool = option(False, "stay on the CPU")

    def __post_init__(self) -> None:
        check_at_least_one(self, "passages", "queries", "dimensions", "k", "rounds")
        if self.contenders[:1] != ["ours"] or set(self.contenders[1:]) - {*ROUNDING}:
            raise InputError(
                f"--contenders {' '.join(self.contenders)}: there are ours, the first, {', '.join(ROUNDING)}"
            )


def make_vectors(args: Arguments, name: str, rows: int) -> EmbeddingMatrix:
    """The matrix NAME of this many rows under OUT_DIR, found there or drawn."""
    folder = Path(args.out_dir, f"search-{args.passages}-{args.queries}-{args.dimensions}")
    source = EmbeddingSource(
        weights=f"drawn with seed {args.seed}",
        tokens=name,
        max_length=0,
        chunk_length=0,
        precision="float32",
        dtype="float32",
        rows=rows,
        dimensions=args.dimensions,
    )
    found = find_embeddings(folder, name, source)
    if found:
        return found
    centres = 2 + np.random.default_rng(args.seed).standard_normal((CENTRES, args.dimensions), dtype=np.float32)
    writer = ShardWriter(folder, name, 0, 1, np.arange(rows), source)
    generator = np.random.default_rng([args.seed, rows, writer.done])
    with progress(total=rows, initial=writer.done, unit="vectors", label=f"draw {name}") as bar:
        for start in range(writer.done, rows, BLOCK):
            count = min(BLOCK, rows - start)
            noise = generator.standard_normal((count, args.dimensions), dtype=np.float32)
            writer.write(centres[generator.integers(0, CENTRES, count)] + noise)
            bar.update(count)
    writer.close()
    return record_embeddings(folder, name, source, 1)


def search_with(
    name: str,
    queries: np.ndarray,
    passages: EmbeddingMatrix,
    k: int,
    device: torch.device,
    peaks: contenders.TurnPeaks | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all passages by a contender: scores and rows, (Q, k). `peaks` learn what faiss has on a GPU."""
    if name == "ours":
        return search(queries, passages, 0, len(passages), k, device)
    import faiss  # which ours does not need on a GPU

    if name == FAISS_GPU:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), passages.shape[1])
    else:
        index = faiss.IndexFlatIP(passages.shape[1])
    for start in range(0, len(passages), BLOCK):
        index.add(passages.rows(start, min(start + BLOCK, len(passages))))
    found = index.search(queries, k)
    if name == FAISS_GPU and peaks:
        peaks.note(name, free - torch.cuda.mem_get_info(device)[0])
    return found


def check_agreement(scores: dict[str, np.ndarray]) -> None:
    """Scores by rank, (Q, k) of each contender, may differ by rounding only."""
    ours = scores["ours"]
    for name in scores.keys() - {"ours"}:
        worst = float((np.abs(ours - scores[name]) / np.abs(ours).max()).max())
        if worst > ROUNDING[name]:
            raise RuntimeError(f"the scores of {name} are off by {worst:.1e} of the largest: they do not agree")


def faiss_version() -> dict[str, str]:
    """Its own, for the package has one of several names; nothing where it is not installed."""
    try:
        import faiss
    except ImportError:
        return {}
    return {"faiss": faiss.__version__}


def measure(args: Arguments, device: torch.device) -> dict:
    """The content of search-….json but for the contenders' memory."""
    queries, passages = make_vectors(args, "queries", args.queries), make_vectors(args, "passages", args.passages)
    own = queries.rows(0, len(queries))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    size = args.product_size or (8192 if device.type == "cuda" else 2048)
    rates = [product_rate(size, dtype, device)]

    def between(number: int, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        check_agreement({name: scores for name, (scores, _) in found.items()})
        say(f"round {number} of {args.rounds} is over")
        rates.append(product_rate(size, dtype, device))

    peaks = contenders.TurnPeaks(device)
    work = {
        name: peaks.watch(name, partial(search_with, name, own, passages, args.k, device, peaks))
        for name in args.contenders
    }
    seconds = contenders.take_turns(work, args.rounds, device, between, args.most_seconds)
    contenders.warn_if_busy(rates)
    operations, rate = 2 * args.queries * args.passages * args.dimensions, statistics.median(rates)
    results = contenders.summarize(seconds, args.contenders[-1], {"queries": args.queries})
    for name, one in results.items():
        one["share_of_products"] = operations / rate / one["median_seconds"]
        one |= {"gpu_peak_gib": peaks.gib[name]} if name in peaks.gib else {}
    head = contenders.describe(args, ("torch", "numpy"), ("out_dir", "contenders", "peak_of", "no_cuda"), device)
    return {
        **(head | {"versions": head["versions"] | faiss_version()}),
        "dtype": str(dtype).removeprefix("torch."),
        "file_gib": args.passages * args.dimensions * 4 / 2**30,
        "peak_operations_a_second": {"size": size, "median": rate, "lowest": min(rates), "highest": max(rates)},
        "contenders": results,
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda)
    if args.peak_of:
        vectors = make_vectors(args, "queries", args.queries), make_vectors(args, "passages", args.passages)
        search_with(args.peak_of, vectors[0].rows(0, args.queries), vectors[1], args.k, device)
        print(contenders.peak_gib(torch.device("cpu")))
        return
    result = measure(args, device)
    path = Path(args.out_dir, f"search-{args.passages}-{result['dtype']}.json")
    contenders.write_result(path, result, __file__, args)


if __name__ == "__main__":
    run(main)
