"""Tokenizes MS MARCO, passages or documents, into token stores and judgments by row.

    python data/msmarco_data.py --data_dir RAW --out_data_dir OUT --model_type rdot_nll_condenser \\
        --model_name_or_path CHECKPOINT --max_seq_length 256 --max_query_length 32 --data_type 1

Reads the public files, plain or gzipped, and writes OUT/passages/, OUT/{train,dev}-query/ and, of each split last,
OUT/{train,dev}-qrel.tsv. Stores that are there already, made from the same files with the same settings, are left
alone; from others, they are made anew: with other queries or judgments their split, else everything. Tokenizing once
for all epochs and episodes is worth a file: every episode encodes the whole collection. One process reads and the
tokenizer's threads work, which keeps the rows in the collection's order without a second pass; the 8.8 million
passages go by in blocks, so memory does not grow with them.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.judgments import read_split
from data.layouts.msmarco import DOCUMENT_SEPARATOR, DOCUMENTS, FILES, PASSAGES, read_documents, read_tsv
from data.sources import Sources, settings
from data.stores import write_stores
from data.tokenizing import check_lengths, load_tokenizer, positions_of
from model.reading import find_reading
from utils.runtime.arguments import ReadingArguments, check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.stores.files import find_file


@dataclass
class Arguments(ReadingArguments):
    data_dir: str = required("folder with MS MARCO's files, plain or .gz")
    out_data_dir: str = required("where token stores and judgments are written")
    model_name_or_path: str = required("checkpoint (folder or hub name) whose tokenizer is used")
    max_seq_length: int = option(128, "tokens of a passage or document at most, special ones included")
    max_query_length: int = option(64, "tokens of a query at most, special ones included")
    max_doc_character: int = option(10_000, "characters of a document (url, title, body) that are tokenized")
    data_type: int = option(PASSAGES, "0: documents, 1: passages")
    in_use: bool = option(False, "refuse, rather than replace stores made from other files or with other settings")

    def __post_init__(self) -> None:
        if self.data_type not in FILES:
            raise InputError(f"--data_type {self.data_type}: there are 0 (documents) and 1 (passages)")
        check_at_least_one(self, "max_doc_character")


def main() -> None:
    args = parse(Arguments, __doc__)
    raw, out = Path(args.data_dir), Path(args.out_data_dir)
    files = FILES[args.data_type]
    checkpoint, lengths = args.model_name_or_path, (args.max_seq_length, args.max_query_length)
    reading = find_reading(checkpoint, **args.reading)
    tokenizer = load_tokenizer(checkpoint, reading.pooling, args.cache_dir or None)
    check_lengths(checkpoint, positions_of(checkpoint, args.cache_dir or None), tokenizer, reading, lengths)

    collection = find_file(raw, *files["collection"])
    pairs = {split: [find_file(raw, *names) for names in files[split]] for split in ("train", "dev")}
    made_with = settings(tokenizer, reading, *lengths)
    made_with |= {"data_type": args.data_type}
    if args.data_type == DOCUMENTS:
        made_with |= {"max_doc_character": args.max_doc_character}
    sources = Sources(out, raw, collection, pairs, made_with)
    make_passages, to_make = sources.to_make(args.in_use)
    if not to_make:
        return
    splits = []
    for name in to_make:
        queries, qrels = pairs[name]
        say(f"reading {queries.name} and {qrels.name}")
        splits.append(read_split(name, partial(read_tsv, queries, reading.queries), queries, qrels))

    texts = None
    if make_passages and args.data_type == PASSAGES:
        texts = read_tsv(collection, reading.passages)
    elif make_passages:
        texts = read_documents(collection, DOCUMENT_SEPARATOR, args.max_doc_character, reading.passages)
    write_stores(out, sources, texts, collection, splits, tokenizer, reading, lengths)


if __name__ == "__main__":
    run(main)
