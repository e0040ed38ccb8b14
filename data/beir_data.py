"""Tokenizes a collection in BEIR's layout into token stores and judgments by row.

    python data/beir_data.py --data_dir BEIR/scifact --out_data_dir OUT --model_type rdot_nll_condenser \\
        --model_name_or_path CHECKPOINT

Reads corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, plain or gzipped, and writes OUT/passages/, OUT/SPLIT-query/
and, last, OUT/SPLIT-qrel.tsv of one or several splits: what data/msmarco_data.py writes, so that what reads the one
reads the other. Stores that are there already, made from the same files with the same settings, are left alone; from
others, they are made anew. Another split, or other queries or judgments, leave the passages alone. Title and text
become one passage, as the published evaluation has it. What a collection of BEIR wants beside that, by its name, is
in data/beir_sets.py. Texts are cut to the lengths that the checkpoint's own files declare, where it is read by those
(--model_type auto), else to those of the data set's published evaluation.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.beir_sets import compare_with_published, find_set
from data.judgments import read_split
from data.layouts.beir import COLLECTION_FILES, read_jsonl
from data.sources import Sources, settings
from data.stores import write_stores
from data.tokenizing import check_lengths, load_tokenizer, positions_of
from model.reading import AUTO, Reading, declared_lengths, find_reading
from utils.runtime.arguments import ReadingArguments, option, parse, required
from utils.runtime.errors import run
from utils.runtime.logs import say
from utils.stores.files import find_file
from utils.stores.token_store import TokenStore


@dataclass
class Arguments(ReadingArguments):
    data_dir: str = required("folder with corpus.jsonl, queries.jsonl and qrels/, plain or .gz")
    out_data_dir: str = required("where token stores and judgments are written")
    model_name_or_path: str = required("checkpoint (folder or hub name) whose tokenizer is used")
    max_seq_length: int = option(0, "tokens of a passage at most, special ones included; 0: see above")
    max_query_length: int = option(0, "tokens of a query at most, likewise")
    split: list[str] = field(
        default_factory=lambda: ["test"], metadata={"help": "the judgments that are used: qrels/SPLIT.tsv of each"}
    )
    dataset: str = option("", "name of the data set, which decides the above (default: the folder's name)")
    in_use: bool = option(False, "refuse, rather than replace stores made from other files or with other settings")

    def __post_init__(self) -> None:
        self.dataset = self.dataset or Path(self.data_dir).resolve().name


def choose_lengths(args: Arguments, reading: Reading, positions: int | None) -> tuple[int, int]:
    """The tokens of a passage and of a query at most: those asked for, the checkpoint's own, or the data set's."""
    own = declared_lengths(args.model_name_or_path, args.cache_dir or None) if reading.model_type == AUTO else None
    published = find_set(args.dataset)
    lengths = list(own or (published.passage_length, published.query_length))
    for place, name in enumerate(("max_seq_length", "max_query_length")):
        if asked := getattr(args, name):
            lengths[place] = asked
        elif positions is not None and lengths[place] > positions:
            if not own:
                say(f"{args.dataset}: {lengths[place]} tokens are published as --{name}, the model takes {positions}")
            lengths[place] = positions
    return lengths[0], lengths[1]


def in_one_line(prepare: Callable[[str], str]) -> Callable[[str], str]:
    """The same of a text in which every run of white space is replaced by one blank."""
    return lambda text: prepare(" ".join(text.split()))


def main() -> None:
    args = parse(Arguments, __doc__)
    raw, out = Path(args.data_dir), Path(args.out_data_dir)
    checkpoint = args.model_name_or_path
    reading = find_reading(checkpoint, **args.reading)
    tokenizer = load_tokenizer(checkpoint, reading.pooling, args.cache_dir or None)
    positions = positions_of(checkpoint, args.cache_dir or None)
    lengths = choose_lengths(args, reading, positions)
    check_lengths(checkpoint, positions, tokenizer, reading, lengths)
    query_text, passage_text = reading.queries, reading.passages
    if find_set(args.dataset).one_line:
        query_text, passage_text = in_one_line(query_text), in_one_line(passage_text)

    corpus, queries = find_file(raw, *COLLECTION_FILES), find_file(raw, "queries.jsonl")
    qrels = {split: find_file(raw / "qrels", f"{split}.tsv") for split in args.split}
    made_with = settings(tokenizer, reading, *lengths)
    made_with |= {"one_line": find_set(args.dataset).one_line}
    sources = Sources(out, raw, corpus, {split: [queries, path] for split, path in qrels.items()}, made_with)
    make_passages, to_make = sources.to_make(args.in_use)
    if not to_make:
        return
    splits = [read_split(name, lambda: read_jsonl(queries, query_text), queries, qrels[name]) for name in to_make]
    texts = read_jsonl(corpus, passage_text) if make_passages else None
    counts = write_stores(out, sources, texts, corpus, splits, tokenizer, reading, lengths)
    for split in splits:
        if split.name == "test":
            sizes = len(TokenStore(out / "passages")), counts["test"]
            compare_with_published(args.dataset, *sizes, split.highest_grade)


if __name__ == "__main__":
    run(main)
