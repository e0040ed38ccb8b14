"""How fast a collection is encoded: ours, as the miner does it, and sentence-transformers, on the same texts.

    python data/demo_data.py --msmarco_dir OUT/msmarco --beir_dir OUT/python-docs
    python evaluate/benchmarks/encoding.py --collection_dir OUT/msmarco --checkpoint CHECKPOINT --out_dir OUT

The contenders take turns on the same passages with the same checkpoint, which is read as its own files say:

    ours                     from a token store to a matrix on the disk (utils/mining/encoding.py)
    sentence-transformers    SentenceTransformer.encode_document, from the texts to vectors in memory; in mixed
                             precision its weights are of that type, where ours are cast to it as they are used
    sentence-transformers, flash attention
                             the same by the package flash-attn; by default it takes no part

A collection is tokenized once for all episodes, so our turn has no tokenizing in it; what that costs is measured by
evaluate/benchmarks/tokenizing.py. Each round's vectors must agree. Speed is also put as the share of the machine's
peak in matrix products that does useful work, as in evaluate/benchmarks/training.py. Memory is that of a process of
its own.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from data.layouts.msmarco import read_tsv
from data.tokenizing import write_token_store
from evaluate.benchmarks import contenders
from evaluate.benchmarks.contenders import product_rate
from evaluate.benchmarks.library_model import ATTENTION, FLASH, LIBRARY, load_model
from evaluate.operations import encoding_operations
from model.encoders import Encoder, load_encoder
from model.reading import AUTO, find_reading
from utils.batching import Sequences
from utils.mining.encoding import encode_store, open_sequences
from utils.runtime.arguments import DeviceArguments, check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.precision import Precision, choose_precision
from utils.stores.files import find_file

OURS = "ours"
NOT_SETTINGS = ("out_dir", "collection_dir", "checkpoint", "contenders", "peak_of", "no_cuda")
LEAST_COSINE = {torch.float32: 0.99999, torch.bfloat16: 0.99, torch.float16: 0.999}


@dataclass
class Arguments(DeviceArguments):
    out_dir: str = required("where encoding-….json goes")
    collection_dir: str = required("folder with the texts, collection.tsv")
    checkpoint: str = required("the BERT checkpoint (folder or hub name)")
    texts: int = option(0, "texts of a turn; 0: 1,000, on CUDA 5,000")
    rounds: int = option(7, "turns of each contender that count, after one that does not")
    batch_size: int = option(128, "texts at once, at most; the miner's default")
    library_batch_size: int = option(32, "texts at once of sentence-transformers; its default")
    max_seq_length: int = option(128, "tokens of a text, at most")
    product_size: int = option(0, "rows of the square matrices of the peak; 0: 2048, on CUDA 8192")
    most_seconds: float = option(0, "rounds end where another one would last longer; 0: never")
    contenders: list[str] = field(
        default_factory=lambda: [OURS, LIBRARY], metadata={"help": f"{OURS}, {LIBRARY}, {FLASH}"}
    )
    seed: int = option(42, "seed of the choice of texts")
    peak_of: str = option("", "only print the peak memory, in GiB, of two turns of this contender")

    def __post_init__(self) -> None:
        check_at_least_one(self, "rounds", "batch_size", "library_batch_size")
        unknown = set(self.contenders) - {OURS, *ATTENTION}
        if unknown or OURS not in self.contenders:
            raise InputError(
                f"--contenders {self.contenders}: there are {OURS}, which takes part, {', '.join(ATTENTION)}"
            )


@dataclass
class Work:
    """What the contenders do: each gives the vectors of all texts, float32 (n, dimensions).

    `weights` are the bytes of each one's.
    """

    contenders: dict[str, Callable[[], np.ndarray]]
    weights: dict[str, int]
    sequences: Sequences
    encoder: Encoder


def make_work(args: Arguments, folder: Path, device: torch.device, precision: Precision) -> Work:
    """Chooses the texts, tokenizes them, and loads the checkpoint for each contender."""
    collection = find_file(args.collection_dir, "collection.tsv")
    texts = list(read_tsv(collection))
    count = args.texts or (5_000 if device.type == "cuda" else 1_000)
    if count > len(texts):
        raise InputError(f"holds {len(texts):,} texts, and --texts asks for {count:,}", collection)
    texts = [texts[i] for i in np.random.default_rng(args.seed).permutation(len(texts))[:count]]
    encoder, tokenizer = load_encoder(args.checkpoint, find_reading(args.checkpoint, AUTO))
    reading, store, length = encoder.reading, folder / "passages", args.max_seq_length
    rows = ((place, text_id, reading.passages(text)) for place, text_id, text in texts)
    named = {"prepared": reading.passages, "label": "texts", "total": count}
    write_token_store(store, rows, tokenizer, length, collection, **named)
    sequences = open_sequences(store, tokenizer, encoder.config, length, prepared=reading.passages)
    models = {}
    for name in set(args.contenders) - {OURS}:
        loading = folder / f"library {name}", encoder, tokenizer, length, device
        models[name] = load_model(*loading, ATTENTION[name]).to(precision.dtype)
    models[OURS] = encoder = encoder.to(device).eval()

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            size = args.batch_size
            return np.array(
                encode_store(
                    encoder, sequences, "passages", out, "", batch_size=size, device=device, precision=precision
                ).all()
            )

    def theirs(name: str) -> np.ndarray:
        vectors = models[name].encode_document(
            [text for _, _, text in texts],
            batch_size=args.library_batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return vectors.float().cpu().numpy()

    work = {name: ours if name == OURS else partial(theirs, name) for name in args.contenders}
    weights = {name: sum(one.nbytes for one in model.parameters()) for name, model in models.items()}
    return Work(work, weights, sequences, encoder)


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The least cosine of two vectors of the same row; each (n, dimensions)."""
    products = (one * other).sum(axis=1)
    return float((products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def measure(args: Arguments, folder: Path, device: torch.device) -> dict:
    """The content of encoding-….json but for the contenders' memory."""
    precision = choose_precision(args.fp16, device)
    work = make_work(args, folder, device, precision)
    size = args.product_size or (8192 if device.type == "cuda" else 2048)
    rates, cosines = [product_rate(size, precision.dtype, device)], []
    peaks = contenders.TurnPeaks(device)
    watched = {name: peaks.watch(name, one, work.weights[name]) for name, one in work.contenders.items()}

    def between(number: int, vectors: dict[str, np.ndarray]) -> None:
        first, *others = vectors.values()
        cosines.append(min((least_cosine(first, other) for other in others), default=1.0))
        if cosines[-1] < LEAST_COSINE[precision.dtype]:
            raise RuntimeError(f"the contenders' vectors of a text have a cosine of {cosines[-1]} only")
        say(f"{precision.dtype}: round {number} of {args.rounds} is over")
        rates.append(product_rate(size, precision.dtype, device))

    seconds = contenders.take_turns(watched, args.rounds, device, between, args.most_seconds)
    contenders.warn_if_busy(rates)
    lengths, peak = np.diff(work.sequences.offsets), statistics.median(rates)
    config, reading = work.encoder.config, work.encoder.reading
    layers, width = config.num_hidden_layers, config.hidden_size
    useful = encoding_operations(lengths, layers, width, reading.pooling)
    amounts = {"texts": len(lengths), "tokens": int(lengths.sum())}
    results = contenders.summarize(seconds, LIBRARY if LIBRARY in seconds else OURS, amounts)
    for name, one in results.items():
        one["useful_share"] = useful / peak / one["median_seconds"]
        one |= {"gpu_peak_gib": peaks.gib[name]} if name in peaks.gib else {}
    return {
        **contenders.describe(args, ("torch", "transformers", LIBRARY), NOT_SETTINGS, device),
        "dtype": str(precision.dtype).removeprefix("torch."),
        "layers": layers,
        "width": width,
        "reading": str(reading),
        "texts": len(lengths),
        "tokens": int(lengths.sum()),
        "least_cosine": min(cosines),
        "peak_operations_a_second": {"size": size, "median": peak, "lowest": min(rates), "highest": max(rates)},
        "contenders": results,
    }


def print_peak(args: Arguments, folder: Path, device: torch.device) -> None:
    contender = make_work(args, folder, device, choose_precision(args.fp16, device)).contenders[args.peak_of]
    contender(), contender()
    print(contenders.peak_gib(device))


def main() -> None:
    args = parse(Arguments, __doc__)
    device = contenders.set_up_one_process(args.no_cuda)
    with tempfile.TemporaryDirectory() as folder:
        if args.peak_of:
            print_peak(args, Path(folder), device)
            return
        result = measure(args, Path(folder), device)
    contenders.write_result(Path(args.out_dir, f"encoding-{result['dtype']}.json"), result, __file__, args)


if __name__ == "__main__":
    run(main)
