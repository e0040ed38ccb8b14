"""How fast texts become tokens on the disk: our token store, and `map` of the library datasets.

    python data/demo_data.py --msmarco_dir OUT/msmarco --beir_dir OUT/python-docs
    python evaluate/benchmarks/tokenizing.py --collection_dir OUT/msmarco --checkpoint CHECKPOINT --out_dir OUT

The contenders take turns on the same texts, the collection's over and over, with the same fast tokenizer, on every
core, cut at the same length. Each round's tokens must be the same.

    ours        from the text file to a token store, as data/msmarco_data.py does it, ids and checksums included
    datasets    Dataset.map, batched, to an Arrow file; the texts are in memory, and it is asked for token ids only

Memory is that of a process of its own.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import Dataset, disable_progress_bars

from data.layouts.msmarco import read_tsv
from data.tokenizing import load_tokenizer, write_token_store
from evaluate.benchmarks import contenders
from evaluate.benchmarks.contenders import READING
from utils.runtime.arguments import check_at_least_one, option, parse, required
from utils.runtime.errors import run
from utils.runtime.logs import say
from utils.stores.files import find_file
from utils.stores.token_store import TokenStore

OURS, LIBRARY = "ours", "datasets"
NOT_SETTINGS = ("out_dir", "collection_dir", "checkpoint", "peak_of")
CPU = torch.device("cpu")


@dataclass
class Arguments:
    out_dir: str = required("where tokenizing.json goes")
    collection_dir: str = required("folder with the texts, collection.tsv")
    checkpoint: str = required("the checkpoint (folder or hub name) whose tokenizer is used")
    texts: int = option(20_000, "texts of a turn")
    rounds: int = option(7, "turns of each contender that count, after one that does not")
    max_seq_length: int = option(128, "tokens of a text, at most")
    peak_of: str = option("", "only print the peak memory, in GiB, of two turns of this contender")

    def __post_init__(self) -> None:
        check_at_least_one(self, "texts", "rounds")


Rows = TokenStore | Dataset


def make_contenders(args: Arguments, folder: Path) -> dict[str, Callable[[], Rows]]:
    """Writes the texts to a file and gives what turns them into rows of tokens: a token store, a data set."""
    collection = find_file(args.collection_dir, "collection.tsv")
    prepare = READING.passages
    some = [text for _, _, text in read_tsv(collection, prepare)]
    texts = [some[i % len(some)] for i in range(args.texts)]
    path = folder / "collection.tsv"
    path.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)), encoding="utf-8")
    tokenizer, length = load_tokenizer(args.checkpoint, READING.pooling), args.max_seq_length
    disable_progress_bars()

    def ours() -> TokenStore:
        given = read_tsv(path, prepare)
        write_token_store(folder / OURS, given, tokenizer, length, path, label="texts", total=args.texts)
        return TokenStore(folder / OURS)

    columns = {"return_attention_mask": False, "return_token_type_ids": False}
    dataset = Dataset.from_dict({"text": texts}) if args.peak_of != OURS else None

    def theirs() -> Dataset:
        return dataset.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=length, **columns),
            batched=True,
            remove_columns=["text"],
            load_from_cache_file=False,
            cache_file_name=str(folder / "tokens.arrow"),
        )

    return {OURS: ours, LIBRARY: theirs}


def check_rows(store: TokenStore, dataset: Dataset) -> None:
    """RuntimeError where a row of one has not the tokens of the other's."""
    pairs = zip(store, dataset["input_ids"], strict=True)
    differing = [row for row, (own, other) in enumerate(pairs) if own.tolist() != list(other)]
    if differing:
        raise RuntimeError(f"the contenders' tokens differ in {len(differing)} rows, row {differing[0]} first")


def measure(args: Arguments, folder: Path) -> dict:
    """The content of tokenizing.json but for the contenders' memory."""

    def between(number: int, rows: dict[str, Rows]) -> None:
        check_rows(rows[OURS], rows[LIBRARY])
        say(f"round {number} of {args.rounds} is over")

    seconds = contenders.take_turns(make_contenders(args, folder), args.rounds, CPU, between)
    tokens = TokenStore(folder / OURS).meta.tokens
    return {
        "device": contenders.name_of(CPU),
        **contenders.describe(args, ("tokenizers", "transformers", LIBRARY), NOT_SETTINGS, None),
        "threads": len(os.sched_getaffinity(0)),
        "texts": args.texts,
        "tokens": tokens,
        "contenders": contenders.summarize(seconds, LIBRARY, {"texts": args.texts, "tokens": tokens}),
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        if args.peak_of:
            contender = make_contenders(args, Path(folder))[args.peak_of]
            contender(), contender()
            print(contenders.peak_gib(CPU))
            return
        result = measure(args, Path(folder))
    contenders.write_result(Path(args.out_dir, "tokenizing.json"), result, __file__, args)


if __name__ == "__main__":
    run(main)
