"""How fast a training step is: ours, sentence-transformers' own trainer and the published way, on the same texts.

    python data/demo_data.py --msmarco_dir OUT/msmarco --beir_dir OUT/python-docs
    python data/msmarco_data.py --data_dir OUT/msmarco --out_data_dir OUT/preprocessed \\
        --model_type auto --model_name_or_path CHECKPOINT
    python evaluate/benchmarks/training.py --collection_dir OUT/msmarco --data_dir OUT/preprocessed \\
        --checkpoint CHECKPOINT --out_dir OUT

commands/run_benchmarks.sh does all of this. The contenders, each a process of its own, take steps in turn, on the
same batches of real texts, with the same model, loss, optimizer and precision; making the batch is part of a step.
With --reading cls, vectors are those of first tokens, compared by dot product; with --reading mean, means of all
tokens of length 1, whose scores the loss multiplies with 20, as most embedding models are trained.

    erm, dro-greedy, idro    ours: packed batches from token stores, each text encoded once
    sentence-transformers    its own trainer (evaluate/benchmarks/library_trainer.py): texts are tokenized as they
                             come and padded to the longest of their column; each triplet has three of its own
    sentence-transformers, flash attention
                             the same by the package flash-attn; by default it takes no part
    published                iDRO as published: all texts padded to the full length, each triplet has three of its
                             own, and a backward pass for every cluster in the batch

A mined line is a query, its positive and 6 random negatives, and each query is in a random cluster. Speed is also put
in terms of what the machine can do, as the share of its peak in matrix products that does useful work; that peak is
measured between the rounds, in the same type and with the same threads.
All processes must fit into memory at once: at the defaults about 18 GiB.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data.judgments import qrel_file
from data.layouts.msmarco import read_tsv
from data.tokenizing import load_tokenizer
from evaluate.benchmarks import contenders
from evaluate.benchmarks.contenders import Processes, Taken, now, product_rate
from evaluate.benchmarks.library_model import ATTENTION, FLASH, LIBRARY, load_model
from evaluate.benchmarks.padded import PaddedBatch, PaddedRetriever, make_padded_batch
from evaluate.operations import useful_operations
from model.encoders import Encoder
from model.optimizers import OPTIMIZERS
from model.reading import AUTO, Reading, find_reading
from model.retriever import Retriever
from model.training_step import TrainingStep
from utils.batching import Sequences, prefetch
from utils.mining.encoding import check_length
from utils.runtime import distributed
from utils.runtime.arguments import DeviceArguments, LengthArguments, check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.memory import keep_freed_memory
from utils.runtime.precision import choose_precision
from utils.samples import Batch, Triplets, make_step_batches
from utils.stores.episode import Episode, MinedLines, read_episode, write_mined_file
from utils.stores.files import write_json
from utils.stores.qrels import read_qrels
from utils.stores.token_store import TokenStore

PUBLISHED = "published"
OURS = ("erm", "dro-greedy", "idro")
CONTENDERS = (LIBRARY, *OURS, PUBLISHED)
ALL = (*CONTENDERS, FLASH)
REFERENCES = (LIBRARY, "erm")
READINGS = {"cls": Reading("cls"), "mean": Reading("mean", normalized=True)}
NEGATIVES_A_LINE = 6
NOT_SETTINGS = ("out_dir", "collection_dir", "data_dir", "checkpoint", "contenders", "no_cuda")


@dataclass
class Arguments(DeviceArguments, LengthArguments):
    out_dir: str = required("where training-….json goes")
    collection_dir: str = required("the texts, in MS MARCO's files: collection.tsv and queries.train.tsv")
    data_dir: str = required("token stores of the same texts, as data/msmarco_data.py writes them")
    checkpoint: str = required("the checkpoint (folder or hub name) with whose tokenizer and prompts these were made")
    reading: str = option("cls", "cls: first tokens, dot products; mean: means of all tokens, length 1, scale 20")
    shape: str = option("minilm", "minilm (6 layers, 384 wide), mid (12, 384), base (12, 768) or tiny")
    triplets: int = option(64, "triplets a step")
    rounds: int = option(7, "steps of each contender that count, after one that does not")
    clusters: int = option(50, "clusters of the queries")
    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS), metadata={"help": ", ".join(ALL)})
    optimizer: str = option("lamb", "lamb or adamW, of all contenders")
    dropout: float = option(0.1, "dropout of all contenders")
    product_size: int = option(0, "rows of the square matrices of the peak; 0: 2048, on CUDA 8192")
    seed: int = option(42, "seed of the lines and clusters")

    def __post_init__(self) -> None:
        contenders.check_shape(self.shape)
        check_at_least_one(self, "triplets", "rounds", "clusters")
        if self.reading not in READINGS:
            raise InputError(f"--reading {self.reading!r}: there are {', '.join(READINGS)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"--optimizer {self.optimizer!r}: there are {', '.join(OPTIMIZERS)}")
        unknown = set(self.contenders) - set(ALL)
        if unknown or not self.contenders:
            raise InputError(f"--contenders {' '.join(self.contenders)}: there are {', '.join(ALL)}")


@dataclass
class Lines:
    """Mined lines and what they speak of: `grouped` distinguishes the clusters, `plain` (ERM's) does not."""

    grouped: Episode
    plain: Episode
    queries: TokenStore
    passages: TokenStore
    reading: Reading
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    batches: int

    def triplets_of(self, number: int) -> np.ndarray:
        """The triplets of a batch, by their numbers in the mined file's order."""
        return np.arange(number * self.batch_size, (number + 1) * self.batch_size)

    def distinct_lengths(self, number: int) -> np.ndarray:
        """The tokens of each distinct text of a batch, int64."""
        triplets = self.triplets_of(number)
        lines = self.grouped.line_of(triplets)
        queries = np.unique(self.grouped.query_rows[lines])
        passages = np.unique(np.append(self.grouped.positive_rows[lines], self.grouped.negative_rows[triplets]))
        return np.concatenate([self.queries.lengths[queries], self.passages.lengths[passages]])


def draw_lines(args: Arguments, folder: Path) -> Lines:
    """Draws one batch for each round and two more, by way of a mined file.

    The first batch warms up, and the last one is made but not trained on: batches are made a step ahead. Negatives
    are any passages but the line's own positive. Where queries run out, they come again.
    """
    reading = make_reading(args)
    tokenizer = load_tokenizer(args.checkpoint, reading.pooling)
    data_dir = Path(args.data_dir)
    queries = TokenStore(data_dir / "train-query").expect(tokenizer, args.max_query_length, reading.queries)
    passages = TokenStore(data_dir / "passages").expect(tokenizer, args.max_seq_length, reading.passages)
    qrels = read_qrels(qrel_file(data_dir, "train"), len(queries), len(passages))
    positives = qrels.within(len(passages)).positives
    generator = np.random.default_rng(args.seed)
    batches = args.rounds + 2
    count = -(-batches * args.triplets // NEGATIVES_A_LINE)
    query_rows = np.resize(generator.permutation(sorted(positives)), count)
    positive_rows = np.array([generator.choice(positives[query]) for query in query_rows])
    negatives = generator.integers(0, len(passages) - 1, size=(count, NEGATIVES_A_LINE))
    negatives += negatives >= positive_rows[:, None]
    clusters = generator.integers(0, args.clusters, size=len(queries))[query_rows]
    mined = folder / "ann_training_data_0"
    write_mined_file(mined, iter([MinedLines(query_rows, positive_rows, negatives, clusters)]))
    episodes = (read_episode(mined, len(queries), len(passages), n_groups) for n_groups in (args.clusters, None))
    return Lines(*episodes, queries, passages, reading, tokenizer, args.triplets, batches)


def make_reading(args: Arguments) -> Reading:
    """How all contenders read: by `args.reading`, texts prepared as the checkpoint's own files say."""
    own = find_reading(args.checkpoint, AUTO)
    texts = {name: getattr(own, name) for name in ("query_prompt", "passage_prompt", "lowercase")}
    return replace(READINGS[args.reading], **texts)


def read_columns(collection_dir: str | Path, lines: Lines) -> dict[str, list[str]]:
    """The texts of all triplets, as sentence-transformers takes them: columns anchor, positive and negative."""
    triplets = np.arange(lines.batches * lines.batch_size)
    line = lines.grouped.line_of(triplets)
    query_text, passage_text = lines.reading.queries, lines.reading.passages
    return {
        name: _texts(collection_dir, store, rows, prepare)
        for name, store, rows, prepare in (
            ("anchor", lines.queries, lines.grouped.query_rows[line], query_text),
            ("positive", lines.passages, lines.grouped.positive_rows[line], passage_text),
            ("negative", lines.passages, lines.grouped.negative_rows[triplets], passage_text),
        )
    }


def _texts(
    collection_dir: str | Path, store: TokenStore, rows: np.ndarray, prepare: Callable[[str], str]
) -> list[str]:
    """What the tokenizer was given for each of these rows, from the file that the store was made of."""
    path = Path(collection_dir, store.meta.source_file)
    ids = [store.ids[row] for row in rows]
    wanted: dict[str, str | None] = dict.fromkeys(ids)
    for _, text_id, text in read_tsv(path, prepare):
        if text_id in wanted:
            wanted[text_id] = text
    missing = [text_id for text_id, text in wanted.items() if text is None]
    if missing:
        raise InputError(f"has no text {missing[0]}, which is in {store.folder}; tokenize the collection again", path)
    return [wanted[text_id] for text_id in ids]


class Turn:
    """Takes our steps, or the published ones, on batches from the token stores.

    As in training, a batch is made in the background of the step before. A turn ends when both are done: it pays for
    making one batch, and has nothing done for it in the turns of others.
    """

    def __init__(
        self,
        make_batch: Callable[[int], Batch | PaddedBatch],
        step: TrainingStep,
        device: torch.device,
    ) -> None:
        self.make_batch, self.step, self.device = make_batch, step, device
        self.made = threading.Event()
        self.batches = prefetch(self._make, 0)

    def _make(self, number: int) -> tuple[Batch | PaddedBatch, int]:
        start = time.perf_counter()
        try:
            batch = self.make_batch(number).to(self.device)
        finally:
            self.input_seconds = time.perf_counter() - start
            self.made.set()
        return batch, number + 1

    def __call__(self) -> Taken:
        start = now(self.device)
        self.made.clear()
        batch, _ = next(self.batches)
        result = self.step([batch], contenders.LEARNING_RATE)
        self.made.wait()
        stop = now(self.device)
        tokens, positions = (
            (batch.tokens, batch.positions)
            if isinstance(batch, PaddedBatch)
            else 2 * (len(batch.tokens.input_ids),)  # the dense layers see no padding
        )
        return Taken(stop - start, self.input_seconds, float(result.loss), tokens, positions)


def make_turn(name: str, args: Arguments, lines: Lines, device: torch.device) -> Turn:
    """A contender of `OURS`, or `PUBLISHED`."""
    episode = lines.plain if name == "erm" else lines.grouped
    queries, passages = Sequences(lines.queries), Sequences(lines.passages)
    model = PaddedRetriever if name == PUBLISHED else Retriever
    encoder = make_encoder(args, lines)
    step = contenders.make_step(name, encoder, episode.n_groups, args.fp16, device, args.optimizer, model)

    def packed(number: int) -> Batch:
        (batch,) = make_step_batches(Triplets(episode), [lines.triplets_of(number)], queries, passages)
        return batch

    def padded(number: int) -> PaddedBatch:
        full_lengths = args.max_query_length, args.max_seq_length
        return make_padded_batch(episode, lines.triplets_of(number), queries, passages, *full_lengths)

    return Turn(padded if name == PUBLISHED else packed, step, device)


def make_encoder(args: Arguments, lines: Lines) -> Encoder:
    encoder = contenders.make_encoder(args.shape, len(lines.tokenizer), args.dropout, lines.reading)
    check_length(encoder.config, "passages", args.max_seq_length)
    return encoder


def take_steps(
    name: str,
    args: Arguments,
    folder: Path,
    device: torch.device,
    wait: Callable[[], object],
    give: Callable[[Taken], object],
) -> None:
    """A contender's steps on the batches 0 … rounds: `wait` is called before each, and `give` with what it took.

    `wait` is also called before what comes after them: the library has a batch left that it must train on.
    """
    lines = draw_lines(args, folder)
    if name in ATTENTION:
        from evaluate.benchmarks.library_trainer import train_in_turns  # whose libraries ours does not need

        loading = folder, make_encoder(args, lines), lines.tokenizer, args.max_seq_length, device
        train_in_turns(
            load_model(*loading, attention=ATTENTION[name]),
            read_columns(args.collection_dir, lines),
            folder,
            triplets=args.triplets,
            scale=lines.reading.scale,
            optimizer=args.optimizer,
            precision=choose_precision(args.fp16, device),
            device=device,
            wait=wait,
            give=give,
        )
        return
    if name in OURS:
        keep_freed_memory()  # as drivers/run_ann.py does
    turn = make_turn(name, args, lines, device)
    for _ in range(lines.batches - 1):
        wait()
        give(turn())
    wait()
    turn.batches.close()


def contend(name: str, args: Arguments, wait: Callable[[], object], give: Callable[[object], object]) -> None:
    """What the process of a contender does: its steps, and at last it gives its peak memory in GiB."""
    device = distributed.set_up(args.no_cuda)
    with tempfile.TemporaryDirectory() as folder:
        take_steps(name, args, Path(folder), device, wait, give)
    give(contenders.peak_gib(device))


def measure(args: Arguments, folder: Path, device: torch.device) -> dict:
    """The content of training-….json."""
    lines = draw_lines(args, folder)
    libraries_gib = contenders.peak_gib(device)
    precision = choose_precision(args.fp16, device)
    layers, width, _ = contenders.SHAPES[args.shape]
    size = args.product_size or (8192 if device.type == "cuda" else 2048)
    rates = [product_rate(size, precision.dtype, device)]
    with Processes({name: (contend, name, args) for name in args.contenders}) as processes:
        rounds = []
        for number in range(args.rounds + 1):
            rounds.append(processes.take_turns(first=number))
            say(f"{args.shape} {precision.dtype}: round {number} of {args.rounds} is over")
            rates.append(product_rate(size, precision.dtype, device))
        peaks = processes.take_turns()
    taken = {name: [one[name] for one in rounds] for name in args.contenders}
    contenders.warn_if_busy(rates)
    lengths = [lines.distinct_lengths(number) for number in range(1, args.rounds + 1)]
    distinct_tokens = [int(of_batch.sum()) for of_batch in lengths]
    useful = [useful_operations(of_batch, layers, width, lines.reading.pooling) for of_batch in lengths]
    peak = statistics.median(rates)
    return {
        **contenders.describe(args, ("torch", "transformers", LIBRARY), NOT_SETTINGS, device),
        "dtype": str(precision.dtype).removeprefix("torch."),
        "layers": layers,
        "width": width,
        "reading": str(lines.reading),
        "batch": {
            "distinct_texts": statistics.median(map(len, lengths)),
            "distinct_tokens": statistics.median(distinct_tokens),
            "useful_operations": statistics.median(useful),
        },
        "peak_operations_a_second": {"size": size, "median": peak, "lowest": min(rates), "highest": max(rates)},
        "libraries_gib": libraries_gib,
        "contenders": {
            name: summarize(taken, name, args.triplets, distinct_tokens, [operations / peak for operations in useful])
            | {"peak_gib": peaks[name]}
            for name in args.contenders
        },
    }


def summarize(
    taken: Mapping[str, list[Taken]], name: str, triplets: int, distinct_tokens: list[int], least_seconds: list[float]
) -> dict:
    """A contender's results over the rounds that count; `least_seconds`: a round's useful operations at the peak."""
    seconds = {other: [one.seconds for one in steps[1:]] for other, steps in taken.items()}
    own, counted = seconds[name], taken[name][1:]
    tokens, positions = (sum(getattr(one, part) for one in counted) for part in ("tokens", "positions"))
    return {
        "median_seconds": statistics.median(own),
        "triplets_per_second": triplets / statistics.median(own),
        "tokens_per_second": statistics.median(map(_divide, distinct_tokens, own)),
        "useful_share": statistics.median(map(_divide, least_seconds, own)),
        "input_share": statistics.median(one.input_seconds / one.seconds for one in counted),
        "padding_share": 1 - tokens / positions,
        "repeated_share": 1 - sum(distinct_tokens) / tokens,
        "time_to": {
            other: {
                "ratio_of_medians": statistics.median(own) / statistics.median(seconds[other]),
                "median_ratio": statistics.median(map(_divide, own, seconds[other])),
            }
            for other in REFERENCES
            if other in seconds
        },
        "first_loss": taken[name][0].loss,
        "seconds": own,
    }


def _divide(one: float, other: float) -> float:
    return one / other


def main() -> None:
    args = parse(Arguments, __doc__)
    device = contenders.set_up_one_process(args.no_cuda)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder), device)
    path = Path(args.out_dir, f"training-{args.shape}-{args.reading}-{result['dtype']}.json")
    write_json(path, result)
    say(f"wrote {path}")


if __name__ == "__main__":
    run(main)
